"""What a frozen policy is shown in an image's place: the image, most of it masked, or no more of it
than its mean colour. Done on pixels, before the processor, so that it is the same for every family.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from PIL import Image

from rewards.lib.images import image_hash

View = Callable[[Image.Image], Image.Image]

PATCH, AT = 14, 448  # pixels: the side of a patch, of an image whose longer side is at most so long
SHARE = 0.6  # of the patches are masked: the best of four in PAPO (arXiv 2507.06448)


def masked(image: Image.Image) -> Image.Image:
    """The image with 60 % of its patches in its mean colour; the image itself is the seed."""
    image = image.convert("RGB")
    width, height = image.size
    patch = max(PATCH, round(PATCH * max(width, height) / AT))
    rows, columns = -(-height // patch), -(-width // patch)
    rng = np.random.default_rng(int(image_hash(image), 16))
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


VIEWS: dict[str, View] = {
    "image": lambda image: image,
    "masked": masked,
    "blank": blank,
}

CROP, LIGHT = 0.94, 0.06  # mild changes: side kept, brightness changed at most by


def augmented(turn: int) -> View:
    """A view: a little less of the image, a little lighter or darker; never flipped."""

    def view(image: Image.Image) -> Image.Image:
        rng = random.Random(bytes.fromhex(image_hash(image)) + bytes([turn]))
        width, height = (max(1, round(CROP * side)) for side in image.size)
        x, y = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        part = image.crop((x, y, x + width, y + height)).resize(
            image.size, Image.Resampling.BICUBIC
        )
        light = 1 + rng.uniform(-LIGHT, LIGHT)
        return part.point(lambda value: value * light)

    return view
