"""The 15 regions of an image that phrases are looked for in: whole, 2 x 2, 3 x 3, centre."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of the image


def _grid(n: int) -> list[Box]:
    return [(x / n, y / n, (x + 1) / n, (y + 1) / n) for y in range(n) for x in range(n)]


CROPS: list[Box] = [(0, 0, 1, 1), *_grid(2), *_grid(3), (0.25, 0.25, 0.75, 0.75)]


class Crops(Sequence[Image]):
    """The crops of each `every`-th image, one behind the other; it is decoded when needed, once."""

    def __init__(self, images: Sequence[Image], every: int = 1) -> None:
        self.images, self.every = images, every
        self._last: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return -(-len(self.images) // self.every) * len(CROPS)

    def __getitem__(self, index: Any) -> Any:
        which, crop = divmod(index, len(CROPS))
        if self._last[0] != which:
            self._last = which, self.images[which * self.every]
        image = self._last[1]
        left, top, right, bottom = (
            int(share * side) for share, side in zip(CROPS[crop], image.size * 2, strict=True)
        )
        return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
