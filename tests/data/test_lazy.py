"""Lazy images: decoded by threads, few at a time, in order, with the errors of a plain loop."""

import threading
import time

import numpy as np
import pytest
from PIL import Image

from vizer_rl.data import decode as decoding
from vizer_rl.data import examine, sources
from vizer_rl.data.lazy import AHEAD, LazyImages, map_rows
from vizer_rl.data.sources import ImageFolder
from vizer_rl.errors import ImageError


def folder(tmp_path, sizes, suffix="jpg"):
    rng = np.random.default_rng(0)
    for k, (width, height) in enumerate(sizes):
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image.save(tmp_path / f"{k:03}.{suffix}", quality=90)
    return ImageFolder.index(tmp_path)


def test_images_come_in_order_and_few_are_held():
    alive, peak, lock = set(), [0], threading.Lock()

    def load(name):
        with lock:
            alive.add(name)
            peak[0] = max(peak[0], len(alive))
        time.sleep(0.002 if int(name) % 2 else 0)  # the later one is ready first
        return Image.new("RGB", (2, 2), (int(name) % 256, 0, 0))

    reds = []
    for name, image in enumerate(LazyImages(load, [str(k) for k in range(6 * AHEAD)])):
        reds.append(image.getpixel((0, 0))[0])
        with lock:
            alive.discard(str(name))
    assert reds == [k % 256 for k in range(6 * AHEAD)]
    assert peak[0] <= AHEAD + 1


def test_an_image_that_does_not_decode_raises_the_sentence_of_a_plain_load(tmp_path):
    images = folder(tmp_path, [(40, 30)] * 5)
    (tmp_path / "003.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError) as plain:
        images.load("003.jpg")
    decoded = iter(LazyImages(images.load, images.ids))
    assert [next(decoded).size for _ in range(3)] == [(40, 30)] * 3
    with pytest.raises(ImageError) as pooled:
        next(decoded)
    assert str(pooled.value) == str(plain.value)
    assert threading.active_count() < 40


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit])
def test_what_has_not_begun_never_begins_after_a_break(error):
    begun = []

    def load(name):
        begun.append(name)
        time.sleep(0.001)
        return Image.new("RGB", (2, 2))

    results = LazyImages(load, [str(k) for k in range(10 * AHEAD)]).map(lambda image: image.size)
    next(results)
    if error is GeneratorExit:
        results.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt)
    count = len(begun)
    time.sleep(0.02)
    assert len(begun) == count <= AHEAD + 1


def test_rows_of_any_sequence_are_mapped(tmp_path):
    images = folder(tmp_path, [(40 + k, 30) for k in range(4)])
    lazy = LazyImages(images.load, images.ids)
    for sequence in (lazy, list(lazy)):
        assert list(map_rows(sequence, [3, 0], lambda image: image.width)) == [43, 40]


def test_a_file_is_named_without_decoding_it_until_it_changes(tmp_path):
    images = folder(tmp_path, [(40, 30), (40, 30)])
    lazy = LazyImages(lambda name: pytest.fail("decoded"), images.ids, identity=images.identity)
    first = lazy.identities()
    assert first == lazy[:].identities()
    assert len(set(first)) == 2
    (tmp_path / "001.jpg").write_bytes((tmp_path / "001.jpg").read_bytes() + b" ")
    second = lazy.identities()
    assert second[0] == first[0]
    assert second[1] != first[1]
    assert LazyImages(images.load, images.ids).identities() is None
    (tmp_path / "000.jpg").unlink()
    with pytest.raises(ImageError, match=r"Cannot use image '.*000.jpg': cannot be read: No such"):
        lazy.identities()


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((4000, 3000), (2000, 1500)),  # 12 megapixels: a half
        ((3000, 4000), (1500, 2000)),
        ((8000, 6000), (2000, 1500)),  # a quarter
        ((3071, 2048), (3071, 2048)),  # a half would leave less than KEPT_SIDES
        ((96, 96), (96, 96)),
    ],
)
def test_a_large_jpeg_is_decoded_at_a_part_of_its_sides(size, decoded, tmp_path):
    images = folder(tmp_path, [size])
    image = images.load(images.ids[0])
    assert image.size == decoded
    long, short = max(image.size), min(image.size)
    assert size == decoded or (long >= decoding.KEPT_SIDES[0] and short >= decoding.KEPT_SIDES[1])
    with Image.open(tmp_path / images.ids[0]) as full:
        wanted = np.asarray(full.convert("RGB").resize((224, 224)), dtype=float)
    assert np.abs(np.asarray(image.resize((224, 224)), dtype=float) - wanted).mean() < 2


def test_a_drafted_jpeg_is_still_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4000, 3000), "red").save(tmp_path / "a.jpg", exif=exif)
    assert decoding.decode(tmp_path / "a.jpg").size == (1500, 2000)


def test_a_large_png_keeps_its_pixels(tmp_path):
    Image.new("RGB", (4000, 3000), (1, 2, 3)).save(tmp_path / "a.png")
    assert decoding.decode(tmp_path / "a.png").size == (4000, 3000)


def test_what_a_pass_has_found_out_is_kept_while_it_goes_on(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    folder(tmp_path / "images", [(40, 30)] * 5)
    monkeypatch.setattr(examine, "KEPT_AFTER", 2)
    counts, real = [], examine._keep

    def keep(path, facts_N):
        counts.append(len(facts_N))
        if len(facts_N) == 5:
            raise KeyboardInterrupt
        real(path, facts_N)

    monkeypatch.setattr(examine, "_keep", keep)
    with pytest.raises(KeyboardInterrupt):
        ImageFolder.index(tmp_path / "images", decoded=tmp_path / "facts.npy")
    assert counts == [2, 4, 5]
    assert len(examine._read_kept(tmp_path / "facts.npy")) == 4


def test_a_file_that_decoded_is_not_decoded_again_until_it_changes(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    folder(tmp_path / "images", [(40, 30)] * 4)
    (tmp_path / "images/000.jpg").write_bytes(b"no image")
    kept, count = tmp_path / "cache/facts.npy", []
    real = examine.small_rgb

    def small_rgb(content, sides):
        count.append(sides)
        return real(content, sides)

    monkeypatch.setattr(examine, "small_rgb", small_rgb)
    first = ImageFolder.index(tmp_path / "images", decoded=kept)
    assert len(count) == 4
    count.clear()
    again = ImageFolder.index(tmp_path / "images", decoded=kept)
    assert (again.ids, again.skipped) == (first.ids, first.skipped)
    assert (again.facts == first.facts).all()
    assert len(count) == 1  # the one that failed is tried again
    (tmp_path / "images/002.jpg").write_bytes(b"cut off")
    count.clear()
    again = ImageFolder.index(tmp_path / "images", decoded=kept)
    assert len(count) == 2
    assert again.ids == ["001.jpg", "003.jpg"]
    monkeypatch.setattr(sources, "DECODE_AT_INDEX", 1)  # what was decoded in full need not be again
    count.clear()
    assert ImageFolder.index(tmp_path / "images", decoded=kept).ids == again.ids
    assert count == [examine.HASHED_SIDES] * 2
    other = tmp_path / "cache/other.npy"
    ImageFolder.index(tmp_path / "images", decoded=other)
    monkeypatch.undo()
    monkeypatch.setattr(examine, "small_rgb", small_rgb)
    count.clear()
    ImageFolder.index(tmp_path / "images", decoded=other)  # its JPEGs were decoded in part alone
    assert len(count) == 4
