"""Duplicates: images with the same bytes, and near ones by a perceptual hash.

The hash is the difference hash (N. Krawetz, "Kind of like that", 2013) in both directions: of the
image as 9 x 9 grey cells, whether each cell is brighter than its neighbour, right (64 bits) and
below (64 bits). Cells must differ by FLAT levels, so that a flat sky gives the same bits after a
new compression, and two images are near only where their mean colours are, too: the hash alone
takes a red square for a blue one. imagehash has the one direction, and wants scipy and PyWavelets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL.Image import Image, Resampling

FACTS = np.dtype(
    [
        ("name", "u8"),  # 64 bits of blake2b: of a file and its state, as the cache knows it
        ("content", "u8"),  # 64 bits of blake2b: of the image's bytes
        ("dhash", "u8", (2,)),
        ("colour", "i2", (3,)),  # mean red, green, blue
        ("full", "?"),  # decoded in full
    ]
)
FLAT = 3  # grey levels of 256
NEAR_BITS = (
    7  # of 128: 76 photographs, saved anew or halved, differed in up to 6, from others in 28
)
NEAR_COLOUR = 6  # levels of 256, in each channel
BANDS = 8  # of 16 bits: hashes that differ in less bits than there are bands share one
NEIGHBOURS = 64  # of an image, in the order of a band, that are compared with it


def fingerprint(rgb: Image) -> tuple[tuple[int, int], tuple[int, ...]]:
    """The difference hash and the mean colour of an RGB image."""
    cells = np.asarray(rgb.resize((9, 9), Resampling.BOX), dtype=np.int16)
    grey = cells @ np.array([299, 587, 114]) // 1000
    right, below = grey[:8, 1:] - grey[:8, :8], grey[1:, :8] - grey[:8, :8]
    bits = np.packbits(np.stack([right > FLAT, below > FLAT]).reshape(2, 64), axis=1)
    first, second = bits.view(">u8")[:, 0].tolist()
    red, green, blue = cells.mean((0, 1)).round().astype(int).tolist()
    return (first, second), (red, green, blue)


def exact_repeats(contents_N: np.ndarray) -> int:
    """How many images have the bytes of another one before them."""
    return len(contents_N) - len(np.unique(contents_N))


def nearest_row(facts: Any, others: Any) -> np.ndarray:
    """For each of N images the first of M others that is the same or near it; -1: none. (N,)."""
    nearest_N = np.full(len(facts), -1)
    order = np.argsort(facts["colour"][:, 0], kind="stable")  # near ones are alike in red, too
    ordered, red = facts[order], facts["colour"][order, 0]
    for row in reversed(range(len(others))):
        bounds = others["colour"][row, 0] + np.array([-NEAR_COLOUR, NEAR_COLOUR + 1])
        first, last = np.searchsorted(red, bounds)
        nearest_N[order[first:last][near(ordered[first:last], others[row])]] = row
    return nearest_N


def near(facts: Any, other: Any) -> np.ndarray:
    """Whether each image has the bytes of the other one or is near it, bool, as their shape."""
    bits = np.bitwise_count(facts["dhash"] ^ other["dhash"]).sum(-1)
    colour = np.abs(facts["colour"] - other["colour"]).max(-1)
    alike = (bits <= NEAR_BITS) & (colour <= NEAR_COLOUR)
    return np.asarray(alike | (facts["content"] == other["content"]))


def near_repeats(facts: Any) -> int:
    """How many different images are near another, at least: exact up to NEIGHBOURS + 1 images.

    Hashes that differ in less than BANDS bits have one of BANDS bands in common (pigeonhole), so
    in the order of each band only neighbours are compared: 1,000,000 images in seconds.
    """
    facts = facts[np.unique(facts["content"], return_index=True)[1]]
    twin_N = np.zeros(len(facts), bool)
    for band in range(BANDS):
        bits = facts["dhash"][:, band // 4] >> np.uint64(16 * (band % 4)) & np.uint64(0xFFFF)
        order = np.lexsort((facts["dhash"][:, 1], facts["dhash"][:, 0], bits))
        ordered, first = facts[order], np.arange(len(facts))
        for distance in range(1, NEIGHBOURS + 1):
            first = first[first + distance < len(order)]
            first = first[bits[order[first]] == bits[order[first + distance]]]
            if not len(first):
                break
            alike = first[near(ordered[first], ordered[first + distance])]
            twin_N[order[alike]] = twin_N[order[alike + distance]] = True
    return int(twin_N.sum())
