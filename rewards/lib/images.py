"""Images for rewards: a lazy selection of many, a hash of the pixels, an augmented view."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from PIL import Image, ImageEnhance, ImageOps


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


def augmented(image: Image.Image, rng: np.random.Generator, *, mirrored: bool) -> Image.Image:
    """The image cropped to 80-100 % of its sides and up to 20 % darker or brighter: same hues."""
    share = rng.uniform(0.8, 1.0)
    width, height = (max(1, round(side * share)) for side in image.size)
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    cropped = image.crop((left, top, left + width, top + height))
    cropped = ImageEnhance.Brightness(cropped).enhance(rng.uniform(0.8, 1.2))
    return ImageOps.mirror(cropped) if mirrored else cropped
