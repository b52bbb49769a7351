"""Lazy image sequence: a folder's images in the order of given ids, so few are in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image

from .sources import ImageFolder


class LazyImages(Sequence[Image]):
    """The images `ids` of a folder, decoded at each indexing; a list of indices is a subset."""

    def __init__(self, folder: ImageFolder, ids: Sequence[str]) -> None:
        self.folder, self.ids = folder, list(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, list):
            return LazyImages(self.folder, [self.ids[i] for i in index])
        return self.folder.load(self.ids[index])
