"""Image perturbations: masked, blanked or mildly augmented copies, to compare a score with.

Done on pixels, before the processor, so that they are the same for every family.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from PIL import Image

from rewards.lib.images import image_hash

View = Callable[[Image.Image], Image.Image]

PATCH, FULL_SIDE = 14, 448  # pixels: a patch's side, in images of up to this longer side
MASKED_SHARE = 0.6  # of the patches are masked: the best of four in PAPO (arXiv 2507.06448)


def masked(image: Image.Image) -> Image.Image:
    """The image with 60 % of its patches in its mean colour; the image itself is the seed."""
    image = image.convert("RGB")
    width, height = image.size
    patch = max(PATCH, round(PATCH * max(width, height) / FULL_SIDE))
    rows, columns = -(-height // patch), -(-width // patch)
    rng = np.random.default_rng(int(image_hash(image), 16))
    hidden = np.zeros(rows * columns, bool)
    hidden[rng.permutation(hidden.size)[: round(MASKED_SHARE * hidden.size)]] = True
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

CROP, BRIGHTNESS = 0.94, 0.06  # mild changes: share of the side kept, largest change


def augmented(variant: int) -> View:
    """View number `variant` (0-255): cropped a little, a little lighter or darker; not flipped."""

    def view(image: Image.Image) -> Image.Image:
        rng = random.Random(bytes.fromhex(image_hash(image)) + bytes([variant]))
        width, height = (max(1, round(CROP * side)) for side in image.size)
        x, y = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        crop = image.crop((x, y, x + width, y + height))
        crop = crop.resize(image.size, Image.Resampling.BICUBIC)
        gain = 1 + rng.uniform(-BRIGHTNESS, BRIGHTNESS)
        return crop.point(lambda value: value * gain)

    return view
