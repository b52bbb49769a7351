"""Crops of an image for region grounding, 15 of them: whole, 2 x 2, 3 x 3, centre."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of the image


def _grid(n: int) -> list[Box]:
    return [(x / n, y / n, (x + 1) / n, (y + 1) / n) for y in range(n) for x in range(n)]


CROPS: list[Box] = [(0, 0, 1, 1), *_grid(2), *_grid(3), (0.25, 0.25, 0.75, 0.75)]


class Crops(Sequence[Image]):
    """The crops of each `stride`-th image, one behind the other; each image is decoded once."""

    def __init__(self, images: Sequence[Image], stride: int = 1) -> None:
        self.images, self.stride = images, stride
        self._last: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return -(-len(self.images) // self.stride) * len(CROPS)

    def __getitem__(self, index: Any) -> Any:
        row, crop = divmod(index, len(CROPS))
        if self._last[0] != row:
            self._last = row, self.images[row * self.stride]
        image = self._last[1]
        left, top, right, bottom = (
            int(share * side) for share, side in zip(CROPS[crop], image.size * 2, strict=True)
        )
        return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
