"""Duplicates and the split by content: hand-made hashes, and photographs that were saved anew."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vizer_rl.data import stores
from vizer_rl.data.content_split import content_split
from vizer_rl.data.duplicates import (
    FACTS,
    exact_repeats,
    fingerprint,
    near,
    near_repeats,
    nearest_row,
)
from vizer_rl.data.sources import ImageFolder

from ..conftest import FIXTURES
from ..hostile import pixels
from ..pictures import save

PHOTOS = FIXTURES / "photos"


def facts(*rows):
    """Facts of (content, first half of the hash, second half, red)."""
    array = np.zeros(len(rows), FACTS)
    for row, (content, first, second, red) in zip(array, rows, strict=True):
        row["content"], row["dhash"], row["colour"] = content, (first, second), (red, 0, 0)
    return array


def random_facts(count, seed=0):
    draw = np.random.default_rng(seed)
    array = np.zeros(count, FACTS)
    for key in ("content", "dhash"):
        array[key] = draw.integers(1, 2**64, array[key].shape, dtype=np.uint64)
    return array


def test_the_difference_hash_of_a_ramp_and_of_an_edge():
    ramp = Image.fromarray(np.tile(np.arange(0, 252, 28, dtype=np.uint8), (9, 1))).convert("RGB")
    assert fingerprint(ramp) == ((2**64 - 1, 0), (112, 112, 112))  # brighter to the right only
    assert fingerprint(ramp.transpose(Image.Transpose.ROTATE_90))[0] == (0, 0)  # darker below
    assert fingerprint(ramp.transpose(Image.Transpose.ROTATE_270))[0] == (0, 2**64 - 1)
    edge = np.zeros((9, 9), np.uint8)
    edge[0, 1] = 100  # cell (0, 1) is brighter than (0, 0): the first of 64 bits
    assert fingerprint(Image.fromarray(edge).convert("RGB"))[0] == (2**63, 0)
    flat = Image.new("RGB", (50, 40), (10, 20, 30))
    assert fingerprint(flat) == ((0, 0), (10, 20, 30))


def test_near_is_seven_bits_and_six_levels():
    one = facts((1, 0, 0, 0))[0]
    others = facts(
        (2, 2**7 - 1, 0, 0),
        (3, 2**4 - 1, 2**3 - 1, 6),
        (4, 2**4 - 1, 2**4 - 1, 0),
        (5, 0, 0, 7),
        (1, 2**64 - 1, 0, 5),
    )
    assert near(others, one).tolist() == [True, True, False, False, True]
    assert nearest_row(facts((9, 0, 0, 0), (8, 2**60, 2**60, 0)), others).tolist() == [0, -1]
    assert nearest_row(others, others[2:4]).tolist() == [0, 0, 0, 1, -1]
    assert nearest_row(others, others[:0]).tolist() == [-1] * 5


def test_repeats_are_counted():
    array = facts((1, 5, 0, 0), (1, 5, 0, 0), (2, 4, 0, 0), (3, 2**64 - 1, 0, 0), (1, 5, 0, 0))
    assert exact_repeats(array["content"]) == 2
    assert near_repeats(array) == 2  # contents 1 and 2
    assert near_repeats(array[:1]) == 0


def test_near_repeats_are_those_of_all_pairs():
    array = random_facts(2000)
    for row in range(0, 200, 2):  # the second of each pair differs in up to 7 bits
        array["dhash"][row + 1] = array["dhash"][row]
        array["dhash"][row + 1, row // 2 % 2] ^= np.uint64(2 ** (row // 2 % 8) - 1 << 13)
    pairs = [near(array, one) for one in array]
    assert near_repeats(array) == sum(int(alike.sum() > 1) for alike in pairs) == 200


def test_many_images_that_share_a_band_take_no_time():
    array = random_facts(20_000)
    array["dhash"] &= np.uint64(0xFFFF)  # flat but for a corner: six of eight bands are equal
    assert near_repeats(array) > 1000


def test_sets_are_chosen_by_content_and_share_no_near_image():
    array = random_facts(1000)
    ids = [f"{n:04}" for n in range(1000)]
    split = content_split(ids, array, watched=20, heldout=50)
    assert [len(s) for s in (split.train, split.watched, split.heldout)] == [930, 20, 50]
    assert (split.left_out, split.exact, split.near) == ({}, 0, 0)
    order = np.argsort(array["content"])
    assert split.heldout == sorted(ids[n] for n in order[:50])
    assert split.watched == sorted(ids[n] for n in order[50:70])
    # other names, another order: the same images
    shuffled = np.random.default_rng(1).permutation(1000)
    moved = content_split([f"x{ids[n]}" for n in shuffled], array[shuffled], 20, 50)
    assert sorted(moved.heldout) == [f"x{i}" for i in split.heldout]
    # what repeats a held-out image, or is near it, is in no other set
    twins = np.concatenate([array, array[order[:2]]])
    twins["content"][1001] = 2**64 - 1
    twins["dhash"][1001, 0] ^= np.uint64(1)
    split = content_split([*ids, "same", "near"], twins, watched=20, heldout=50)
    assert split.left_out == {"same": ids[order[0]], "near": ids[order[1]]}
    assert (split.exact, split.near) == (1, 2)
    kept = {*split.train, *split.watched, *split.heldout}
    assert kept.isdisjoint(split.left_out)
    assert len(kept) + len(split.left_out) == 1002


def test_no_set_shares_a_look_where_all_are_alike():
    array = facts(*((n, 0, 0, 0) for n in range(1, 21)))
    split = content_split([f"{n}" for n in range(20)], array, watched=2, heldout=2)
    assert (split.train, split.watched, len(split.heldout)) == ([], [], 2)
    assert len(split.left_out) == 18


def test_an_index_knows_content_and_look(tmp_path, monkeypatch):
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        Image.fromarray(pixels(64, 48, seed)).save(tmp_path / f"{name}.png")
    Image.fromarray(pixels(64, 48, 1)).save(tmp_path / "d.bmp")
    save(tmp_path / "e.png", (1, 2, 3))
    images = ImageFolder.index(tmp_path, decoded=tmp_path / "facts/x.npy")
    rows = images.facts_of(["c.png", "a.png", "b.png", "d.bmp", "e.png"])
    assert rows["content"][0] == rows["content"][1] != rows["content"][2]
    assert near(rows, rows[3]).tolist() == [False, False, True, True, False]
    assert rows["colour"][4].tolist() == [1, 2, 3]
    monkeypatch.setattr(stores, "MAX_BYTES", 100)  # larger files are hashed by blocks
    again = ImageFolder.index(tmp_path, decoded=tmp_path / "facts/y.npy")
    assert (again.facts == images.facts).all()


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photos at {PHOTOS}")
def test_photographs_saved_anew_are_near_and_others_are_not(tmp_path):
    files = sorted(Path(PHOTOS).rglob("*.jpg"))[:24]
    array = np.zeros(2 * len(files), FACTS)
    for n, path in enumerate(files):
        with Image.open(path) as image:
            rgb = image.convert("RGB")
        buffer = io.BytesIO()
        rgb.resize((rgb.width // 2, rgb.height // 2)).save(buffer, "JPEG", quality=60)
        for row, picture in ((2 * n, rgb), (2 * n + 1, Image.open(buffer))):
            hashes, colour = fingerprint(picture.convert("RGB"))
            array[row] = (0, row + 1, hashes, colour, True)
    for n in range(len(files)):
        assert np.flatnonzero(near(array, array[2 * n])).tolist() == [2 * n, 2 * n + 1]
    assert near_repeats(array) == len(array)
