"""Image sources: what is found in a folder, glob pattern or file, and what is skipped and why."""

import json
import os
from pathlib import Path

import pytest

from vizer_rl.data import sources
from vizer_rl.data.dataset import rows
from vizer_rl.data.sources import ImageFolder
from vizer_rl.errors import ImageError

from ..conftest import FIXTURES
from ..pictures import noise, png_with_size, save, truncate

PHOTOS = FIXTURES / "photos"


def test_unusable_files_are_skipped_each_with_its_reason(tmp_path, recwarn):
    save(tmp_path / "good.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("hello, this is not an image\n" * 20)
    truncate(noise(tmp_path / "truncated.jpg"))
    truncate(noise(tmp_path / "truncated.png"))
    save(tmp_path / "thin.png", size=(1, 50))
    png_with_size(tmp_path / "bomb.png", 60_000, 60_000)
    png_with_size(tmp_path / "warned.png", 10_000, 10_000)  # Pillow warns here, and raises above
    (tmp_path / "broken.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")  # to open it would wait for ever
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n")
    (tmp_path / "notes.txt").write_text("not an image at all")
    images = ImageFolder.index(tmp_path)
    assert len(recwarn) == 0
    assert images.ids == ["good.png"]
    reasons = {Path(path).name: reason for path, reason in images.skipped.items()}
    assert reasons.pop("pipe.png") == "not a plain file"
    assert reasons.pop("empty.png") == "empty file (0 bytes)"
    assert reasons.pop("text.jpg") == "not an image that Pillow can read"
    assert "truncated" in reasons.pop("truncated.jpg")
    assert reasons.pop("truncated.png").startswith("cannot be read")
    assert reasons.pop("thin.png") == "less than 2 pixels a side (1 x 50)"
    assert "exceeds limit" in reasons.pop("bomb.png")
    assert "exceeds limit" in reasons.pop("warned.png")
    assert reasons.pop("broken.png") == "cannot be read: No such file or directory"
    assert reasons == {}


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


def test_load_names_the_file_and_the_reason(tmp_path):
    save(tmp_path / "b.png")
    images = ImageFolder.index(tmp_path)
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"Cannot use image '.*b\.png': empty file"):
        images.load("b.png")
    with pytest.raises(
        ImageError, match=r"Cannot use image '.*q\.png': cannot be read: No such file"
    ):
        images.load("q.png")


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photos at {PHOTOS}")
def test_all_fixture_photos_load():
    images = ImageFolder.index(PHOTOS)
    assert len(images.ids) == 76
    assert images.skipped == {}
    assert rows(images, "Describe")[75]["image"].mode == "RGB"


def test_the_sizes_of_many_images_are_those_of_a_sample(tmp_path, monkeypatch):
    for n in range(6):
        save(tmp_path / f"{n}.png", size=(4 + n, 9))
    images = ImageFolder.index(tmp_path)
    assert images.sample_sizes(0) == images.sizes() == [(4 + n, 9) for n in range(6)]
    monkeypatch.setattr(sources, "MEASURED", 3)
    few = images.sample_sizes(0)
    assert len({*few}) == 3
    assert few == sorted(few) == images.sample_sizes(0)
    assert {*few} < {*images.sizes()}
    assert len(images.ids) == 6
