"""Image sources to rows: what is found, skipped, decoded, and that nothing but pixels gets in."""

import copy
import json
import os
import pickle
from pathlib import Path

import pytest
from PIL import Image

from vizer_rl.data import dataset as dataset_module
from vizer_rl.data import decode, sources
from vizer_rl.data.dataset import rows
from vizer_rl.data.sources import ImageFolder
from vizer_rl.errors import ImageError

from ..conftest import FIXTURES
from ..pictures import noise, save, truncate

PHOTOS = FIXTURES / "photos"


@pytest.fixture
def three(tmp_path):
    for name, color in [("a.png", (1, 0, 0)), ("b.png", (2, 0, 0)), ("c.png", (3, 0, 0))]:
        save(tmp_path / name, color)
    return tmp_path


# Decoding: one hand-known pixel per case.


def test_skipped_files_are_written_as_json_lines(tmp_path):
    save(tmp_path / "in/good.png")
    (tmp_path / "in/é.png").touch()
    ImageFolder.index(tmp_path / "in").write_skipped(tmp_path / "skipped.jsonl")
    (line,) = (tmp_path / "skipped.jsonl").read_text().splitlines()
    expected = {"path": str(tmp_path / "in/é.png"), "reason": "empty file (0 bytes)"}
    assert json.loads(line) == expected


def test_a_file_name_that_is_not_utf8_is_skipped(tmp_path):
    save(tmp_path / "good.png")
    os.rename(save(tmp_path / "x.png"), os.fsencode(tmp_path) + b"/\xff.png")
    images = ImageFolder.index(tmp_path)
    assert images.ids == ["good.png"]
    images.write_skipped(tmp_path / "skipped.jsonl")
    assert "surrogates" in (tmp_path / "skipped.jsonl").read_text()


def test_no_usable_image_says_where_how_many_and_why(tmp_path):
    with pytest.raises(
        ImageError, match="0 image files found, 0 skipped, mostly because: no image"
    ):
        ImageFolder.index(tmp_path)
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    (tmp_path / "c.png").write_text("text")
    with pytest.raises(
        ImageError, match=r"3 image files found, 3 skipped, mostly .* empty"
    ) as error:
        ImageFolder.index(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_missing_folder_names_the_nearest_one(tmp_path):
    (tmp_path / "photos").mkdir()
    for missing in ("photoz", "photoz/deeper/still", "photoz/*.jpg"):
        with pytest.raises(ImageError, match=r"not found; nearest: .*photos\.$"):
            ImageFolder.index(tmp_path / missing)
    with pytest.raises(ImageError, match=r"qqqqqqqq' not found\.$"):
        ImageFolder.index(tmp_path / "qqqqqqqq")


# What is found.


def test_folders_are_searched_in_depth_sorted_and_without_hidden_ones(tmp_path):
    for name in ("b.PNG", "a/z.jpg", "a/b/y.webp", ".hidden.png", ".git/x.png", "a/.cache/x.png"):
        save(tmp_path / name)
    images = ImageFolder.index(tmp_path)
    assert images.ids == ["a/b/y.webp", "a/z.jpg", "b.PNG"]
    assert images.paths == [tmp_path / image_id for image_id in images.ids]
    assert images.skipped == {}


def test_links_are_followed_once_and_loops_end(tmp_path):
    save(tmp_path / "elsewhere/x.png")
    save(tmp_path / "in/a/y.png")
    (tmp_path / "in/a/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    assert ImageFolder.index(tmp_path / "in").ids == ["a/y.png", "linked/x.png"]
    assert ImageFolder.index(tmp_path / "in/**/*.png").ids == ["a/y.png"]


def test_a_glob_pattern_is_relative_to_its_fixed_part(tmp_path, monkeypatch):
    for name in ("p/1/a.jpg", "p/2/b.jpg", "p/2/c.png", "p/d.jpg", "p/.h/e.jpg"):
        save(tmp_path / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert ImageFolder.index("~/p/*/*.jpg").ids == ["1/a.jpg", "2/b.jpg"]
    assert ImageFolder.index("p/**/*.jpg").ids == ["1/a.jpg", "2/b.jpg", "d.jpg"]
    assert ImageFolder.index("p/**").ids == ["1/a.jpg", "2/b.jpg", "2/c.png", "d.jpg"]
    assert ImageFolder.index("p/[2]/**.png").ids == ["2/c.png"]
    assert ImageFolder.index("~/p").ids == ["1/a.jpg", "2/b.jpg", "2/c.png", "d.jpg"]
    with pytest.raises(ImageError, match="0 image files found"):
        ImageFolder.index("p/*.webp")


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path):
    save(tmp_path / "trip [2020]/x.png")
    assert ImageFolder.index(tmp_path / "trip [2020]").ids == ["x.png"]


def test_a_single_file_is_a_source(tmp_path):
    assert ImageFolder.index(save(tmp_path / "x.png")).ids == ["x.png"]


def test_limit_is_a_seeded_and_stable_subset(tmp_path):
    for i in range(20):
        save(tmp_path / f"{i:02}.png")
    everything = ImageFolder.index(tmp_path).ids
    five = ImageFolder.index(tmp_path, limit=5, seed=1).ids
    assert five == sorted(five)
    assert len(set(five)) == 5
    assert set(five) < set(everything)
    assert five == ImageFolder.index(tmp_path, limit=5, seed=1).ids
    assert five != ImageFolder.index(tmp_path, limit=5, seed=2).ids
    assert ImageFolder.index(tmp_path, limit=99).ids == everything
    with pytest.raises(ImageError, match="at least 1, got 0"):
        ImageFolder.index(tmp_path, limit=0)


def test_load_names_the_file_and_the_reason(three):
    images = ImageFolder.index(three)
    (three / "b.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"Cannot use image '.*b\.png': empty file"):
        images.load("b.png")
    with pytest.raises(
        ImageError, match=r"Cannot use image '.*q\.png': cannot be read: No such file"
    ):
        images.load("q.png")


# Rows.


def test_a_large_source_is_indexed_by_header_and_decoded_when_read(three, monkeypatch):
    decoded = []
    to_rgb = decode.to_rgb
    monkeypatch.setattr(
        decode, "to_rgb", lambda image: decoded.append(image.filename) or to_rgb(image)
    )
    monkeypatch.setattr(sources, "DECODE_AT_INDEX", 2)
    dataset = rows(ImageFolder.index(three), "Describe")
    assert decoded == []
    assert dataset[1]["image"].getpixel((0, 0)) == (2, 0, 0)
    assert [Path(name).name for name in decoded] == ["b.png"]
    dataset[[1, 1, 1]]
    assert len(decoded) == 1  # TRL asks for the same image G times


def test_rows_can_be_read_in_every_way_trl_reads_them(three):
    dataset = rows(ImageFolder.index(three), "Describe")
    assert len(dataset) == 3
    first = next(iter(dataset))
    assert (first["image_id"], first["prompt"], first["image"].size) == (
        "a.png",
        "Describe",
        (4, 4),
    )
    assert dataset[2]["image_id"] == "c.png"
    batch = dataset[[0, 0, 1]]
    assert batch["image_id"] == ["a.png", "a.png", "b.png"]
    assert [image.getpixel((0, 0))[0] for image in batch["image"]] == [1, 1, 2]
    assert dataset[[]] == {"image_id": [], "image": [], "prompt": []}
    assert dataset.shuffle(seed=0).select([0])[0]["image"].mode == "RGB"


def test_every_prompt_is_a_copy_of_its_own(three):
    prompt = [{"role": "user", "content": "Describe"}]
    dataset = rows(ImageFolder.index(three), prompt)
    batch = dataset[[0, 0]]
    batch["prompt"][0][0]["content"] = "changed"
    assert batch["prompt"][1] == dataset[0]["prompt"] == prompt
    assert prompt == [{"role": "user", "content": "Describe"}]


def test_an_image_that_breaks_after_indexing_is_replaced_by_the_next(three):
    images = ImageFolder.index(three)
    dataset = rows(images, "Describe")
    (three / "b.png").write_bytes(b"broken")
    (three / "c.png").write_bytes(b"")
    for _ in range(2):
        row = copy.deepcopy(dataset)[1]  # as many methods of a Dataset do
        assert row["image_id"] == "a.png"  # c is broken too: wraps
        assert row["image"].getpixel((0, 0)) == (1, 0, 0)
    assert sorted(Path(path).name for path in images.skipped) == ["b.png", "c.png"]
    assert len(dataset) == 3


def test_rows_say_so_when_no_image_is_left(three):
    dataset = rows(ImageFolder.index(three), "Describe")
    for path in three.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ImageError, match="Not one image of"):
        dataset[0]


def test_rows_reach_data_loader_workers(three):
    dataset = rows(ImageFolder.index(three), "Describe")
    before = dataset[0]  # a filled cache is no hindrance
    arrived = pickle.loads(pickle.dumps(dataset))
    assert arrived[0]["image"].tobytes() == before["image"].tobytes()
    assert arrived[0]["image"] is not before["image"]


def test_few_decoded_images_are_kept(tmp_path, monkeypatch):
    for i in range(3):
        save(tmp_path / f"{i}.png")
    monkeypatch.setattr(dataset_module, "CACHED_IMAGES", 2)
    dataset = rows(ImageFolder.index(tmp_path), "Describe")
    first = dataset[0]["image"]
    assert dataset[0]["image"] is first
    dataset[[1, 2]]
    assert dataset[0]["image"] is not first


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to count open files")
def test_no_file_stays_open(tmp_path):
    save(tmp_path / "x.png")
    noise(tmp_path / "x.jpg")
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for suffix in ("gif", "tiff", "webp"):
        frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:])
    truncate(noise(tmp_path / "y.jpg"))
    (tmp_path / "z.jpg").write_text("text")
    images = ImageFolder.index(tmp_path)
    decoded = [images.load(image_id) for image_id in images.ids]
    links = [os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    assert len(decoded) == 5
    assert not [link for link in links if str(tmp_path) in link]


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photos at {PHOTOS}")
def test_all_fixture_photos_load():
    images = ImageFolder.index(PHOTOS)
    assert len(images.ids) == 76
    assert images.skipped == {}
    assert rows(images, "Describe")[75]["image"].mode == "RGB"
