"""A lazy image sequence: the image of each id, decoded when indexed, perturbed where wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL.Image import Image

from .perturb import View


class LazyImages(Sequence[Image]):
    """The image of each id, which `load` decodes when it is indexed, and `view` perturbs."""

    def __init__(
        self, load: Callable[[str], Image], ids: Sequence[str], view: View | None = None
    ) -> None:
        self.load, self.ids, self.view = load, list(ids), view

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return LazyImages(self.load, self.ids[index], self.view)
        if isinstance(index, list):
            return LazyImages(self.load, [self.ids[row] for row in index], self.view)
        image = self.load(self.ids[index])
        return self.view(image) if self.view else image
