"""Images of a folder by number, decoded when indexed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image

from .sources import ImageFolder


class LazyImages(Sequence[Image]):
    """Images of a folder by number, decoded when indexed and not before."""

    def __init__(self, folder: ImageFolder, ids: Sequence[str]) -> None:
        self.folder, self.ids = folder, list(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, list):
            return LazyImages(self.folder, [self.ids[row] for row in index])
        return self.folder.load(self.ids[index])
