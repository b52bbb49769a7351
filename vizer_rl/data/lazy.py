"""A lazy image sequence: decoded when indexed, by threads ahead of whoever iterates over it.

Pillow decodes and resizes without the GIL, so threads are enough, and no image is copied.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from PIL.Image import Image

from .perturb import View

S = TypeVar("S")
T = TypeVar("T")
Track = Callable[[Iterator[Any], int], Iterator[Any]]  # passes results on, and shows how many came
WORKERS = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
AHEAD = 2 * WORKERS  # images decoded or being decoded that nobody has taken yet


class LazyImages(Sequence[Image]):
    """The image of each id, which `load` decodes when it is needed, and `view` perturbs.

    identity: names an image's file and its state without decoding it; track: shows progress.
    """

    def __init__(
        self,
        load: Callable[[str], Image],
        ids: Sequence[str],
        view: View | None = None,
        identity: Callable[[str], str] | None = None,
        track: Track | None = None,
    ) -> None:
        self.load, self.ids, self.view = load, list(ids), view
        self.identity, self.track = identity, track

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._of(self.ids[index])
        if isinstance(index, list):
            return self._of([self.ids[row] for row in index])
        image = self.load(self.ids[index])
        return self.view(image) if self.view else image

    def _of(self, ids: list[str]) -> LazyImages:
        return LazyImages(self.load, ids, self.view, self.identity, self.track)

    def __iter__(self) -> Iterator[Image]:
        return self.map(lambda image: image)

    def map(self, function: Callable[[Image], T]) -> Iterator[T]:
        """function(image) for each image, in order; threads run it, at most AHEAD images ahead.

        An image that does not decode raises its error where its turn comes.
        """
        results = ahead(lambda row: function(self[row]), range(len(self)))
        return self.track(results, len(self)) if self.track else results

    def identities(self) -> list[str] | None:
        """What names each image without decoding it; None for perturbed or nameless ones."""
        if self.identity is None or self.view is not None:
            return None
        return [self.identity(image_id) for image_id in self.ids]


def ahead(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """function(item) for each item, in order; threads run it, at most AHEAD items ahead."""
    pending = deque[Future[T]]()
    with ThreadPoolExecutor(WORKERS) as pool:  # which starts a thread only where it has work
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) == AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # an error, Ctrl-C or a reader that stops: what has not begun never begins
            for future in pending:
                future.cancel()


def map_rows(
    images: Sequence[Image], rows: Sequence[int], function: Callable[[Image], T]
) -> Iterator[T]:
    """function(image) of these rows of a sequence, in order; lazy images are decoded ahead."""
    if isinstance(images, LazyImages):
        return images[list(rows)].map(function)
    return (function(images[row]) for row in rows)
