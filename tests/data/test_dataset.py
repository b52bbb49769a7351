"""Rows of a data set: decoded when read, with a prompt of their own, and without any label."""

import copy
import pickle
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from vizer_rl.data import dataset as dataset_module
from vizer_rl.data import decode, sources
from vizer_rl.data.dataset import rows
from vizer_rl.data.sources import ImageFolder
from vizer_rl.errors import ImageError

from ..pictures import save


@pytest.fixture
def three(tmp_path):
    for name, color in [("a.png", (1, 0, 0)), ("b.png", (2, 0, 0)), ("c.png", (3, 0, 0))]:
        save(tmp_path / name, color)
    return tmp_path


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


def test_text_stored_in_a_file_does_not_travel_with_the_image(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("Description", "a label")
    save(tmp_path / "x.png", pnginfo=text)
    exif = Image.Exif()
    exif[0x010E] = "a label"
    save(tmp_path / "x.jpg", exif=exif, comment="a label")
    images = ImageFolder.index(tmp_path)
    for row in rows(images, "Describe"):
        assert set(row) == {"image_id", "image", "prompt"}
        assert row["image"].info == {}
        assert not row["image"].getexif()
        assert b"label" not in pickle.dumps(row["image"])
