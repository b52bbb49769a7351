"""What rewards do with images: pick some of many without decoding all, and look at one again."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from PIL import Image, ImageEnhance, ImageOps


class Picked(Sequence[Image.Image]):
    """Images of a sequence by number, each loaded when asked for; the last one is kept."""

    def __init__(self, images: Sequence[Image.Image], which: Sequence[int]) -> None:
        self.images, self.which = images, which
        self._last: tuple[int, Image.Image] | None = None

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, row: int) -> Image.Image:  # type: ignore[override]
        number = self.which[row]
        if self._last is None or self._last[0] != number:
            self._last = number, self.images[number]
        return self._last[1]


def image_hash(image: Image.Image) -> str:
    """32 hexadecimal digits that name the pixels of an image."""
    key = repr(image.size).encode()
    return blake2b(image.tobytes(), key=key, digest_size=16).hexdigest()


def view(image: Image.Image, rng: np.random.Generator, *, mirrored: bool) -> Image.Image:
    """The image cropped to 80-100 % of its sides and up to 20 % darker or brighter: same hues."""
    share = rng.uniform(0.8, 1.0)
    width, height = (max(1, round(side * share)) for side in image.size)
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    seen = image.crop((left, top, left + width, top + height))
    seen = ImageEnhance.Brightness(seen).enhance(rng.uniform(0.8, 1.2))
    return ImageOps.mirror(seen) if mirrored else seen
