"""Images for rewards: a lazy selection of many, a hash of the pixels, augmented and blank views."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

SHADES = 32  # steps of a blank image's colour


class Picked(Sequence[Image.Image]):
    """Images of a sequence by row, each decoded when indexed; the last one is kept."""

    def __init__(self, images: Sequence[Image.Image], rows: Sequence[int]) -> None:
        self.images, self.rows = images, rows
        self._last: tuple[int, Image.Image] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]
        row = self.rows[index]
        if self._last is None or self._last[0] != row:
            self._last = row, self.images[row]
        return self._last[1]


def image_hash(image: Image.Image) -> str:
    """32 hexadecimal digits that name the pixels of an image."""
    key = repr(image.size).encode()
    return blake2b(image.tobytes(), key=key, digest_size=16).hexdigest()


def augmented(
    image: Image.Image, rng: np.random.Generator, *, mirrored: bool, change: float = 0.2
) -> Image.Image:
    """The image cropped by up to 20 % of its sides and up to 20 % darker or brighter: same hues.

    change: that share, of both.
    """
    share = rng.uniform(1 - change, 1.0)
    width, height = (max(1, round(side * share)) for side in image.size)
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    cropped = image.crop((left, top, left + width, top + height))
    cropped = ImageEnhance.Brightness(cropped).enhance(rng.uniform(1 - change, 1 + change))
    return ImageOps.mirror(cropped) if mirrored else cropped


def blanked(image: Image.Image) -> Image.Image:
    """An image of the same size, all in about the mean colour of this one: one for many images."""
    mean = np.asarray(image.convert("RGB")).mean((0, 1))
    red, green, blue = (min(255, SHADES * round(float(c) / SHADES)) for c in mean)
    return Image.new("RGB", image.size, (red, green, blue))
