"""What a frozen policy is shown in an image's place: the image, most of it masked, or no more of it
than its mean colour. Done on pixels, before the processor, so that it is the same for every family.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import numpy as np
from PIL import Image

PATCH, AT = 14, 448  # pixels: the side of a patch, of an image whose longer side is at most so long
SHARE = 0.6  # of the patches are masked: the best of four in PAPO (arXiv 2507.06448)


def fingerprint(image: Image.Image) -> bytes:
    """16 bytes that name the pixels of an image."""
    return blake2b(image.tobytes(), key=repr(image.size).encode(), digest_size=16).digest()


def masked(image: Image.Image) -> Image.Image:
    """The image with 60 % of its patches in its mean colour; the image itself is the seed."""
    image = image.convert("RGB")
    width, height = image.size
    patch = max(PATCH, round(PATCH * max(width, height) / AT))
    rows, columns = -(-height // patch), -(-width // patch)
    rng = np.random.default_rng(int.from_bytes(fingerprint(image), "big"))
    hidden = np.zeros(rows * columns, bool)
    hidden[rng.permutation(hidden.size)[: round(SHARE * hidden.size)]] = True
    hidden = hidden.reshape(rows, columns).repeat(patch, 0).repeat(patch, 1)[:height, :width]
    pixels = np.array(image)
    pixels[hidden] = _mean(image)
    return Image.fromarray(pixels)


def blank(image: Image.Image) -> Image.Image:
    """An image of the same size, all in the mean colour of this one."""
    return Image.new("RGB", image.size, _mean(image.convert("RGB")))


def _mean(image: Image.Image) -> tuple[int, ...]:
    return tuple(int(c) for c in np.asarray(image).mean((0, 1)).round())


VIEWS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "image": lambda image: image,
    "masked": masked,
    "blank": blank,
}
