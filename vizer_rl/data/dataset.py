"""Data set of rows {image_id, image, prompt}, decoded when read."""

from __future__ import annotations

from bisect import bisect_left
from copy import deepcopy
from functools import lru_cache
from typing import Any

from datasets import Dataset
from PIL import Image

from ..errors import ImageError
from .sources import ImageFolder

CACHED_IMAGES = 32  # TRL reads a row G times running; 32 photos of 12 megapixels take .3 GB


def rows(images: ImageFolder, prompt: Any) -> Dataset:
    """A Dataset of rows {"image_id": str, "image": RGB, "prompt": a new copy}, decoded when read.

    Rows share images: read-only. One that fails gives way to the next good one, with its own id.
    Take ids from `images.ids`: `dataset["image_id"]` would decode every image.
    """
    return Dataset.from_dict({"image_id": images.ids}).with_transform(_Rows(images, prompt))


class _Rows:
    """Image ids -> rows; in a DataLoader worker a copy, whose `skipped` the parent never sees."""

    def __init__(self, images: ImageFolder, prompt: Any) -> None:
        self.images, self.prompt = images, prompt
        self.cached_usable = lru_cache(CACHED_IMAGES)(self._first_usable)

    def __call__(self, batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        usable = [self.cached_usable(image_id) for image_id in batch["image_id"]]
        ids, images = [image_id for image_id, _ in usable], [image for _, image in usable]
        return {"image_id": ids, "image": images, "prompt": [deepcopy(self.prompt) for _ in ids]}

    def _first_usable(self, image_id: str) -> tuple[str, Image.Image]:
        """The image or, where it cannot be used, the next that can in index order, wrapping."""
        ids, skipped = self.images.ids, self.images.skipped
        start = bisect_left(ids, image_id)
        for i in range(start, start + len(ids)):
            candidate = ids[i % len(ids)]
            if self.images.place(candidate) not in skipped:
                try:
                    return candidate, self.images.load(candidate)
                except ImageError as error:
                    self.images.skip(candidate, str(error.__cause__))
        raise ImageError(f"Not one image of '{self.images.source}' can be decoded any more.")

    def __reduce__(self) -> tuple[type[_Rows], tuple[ImageFolder, Any]]:
        return _Rows, (self.images, self.prompt)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Rows:
        return self  # `datasets` deep-copies on most calls; `skipped` must stay the caller's
