"""Several sources as one, thinned to the shares that their weights ask for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import ImageError, masked
from .decode import Data
from .stores import State

SALT = np.uint64(0x9E3779B97F4A7C15)  # so that what is kept does not depend on what is held out


class Part(Protocol):
    """One of the sources: `sources.ImageFolder`."""

    ids: list[str]

    @property
    def address(self) -> str: ...
    @property
    def dropped(self) -> Counter[str]: ...
    def data(self, image_id: str) -> Data: ...
    def file(self, image_id: str) -> Path | None: ...
    def state(self, image_id: str) -> State: ...
    def changed(self, image_id: str) -> bool: ...


class Mixture:
    """Images of several sources; a name is `NUMBER/NAME`, the number of its source from 1."""

    def __init__(self, parts: Sequence[Part], weights: Mapping[str, float]) -> None:
        """weights: of each part, above 0, in the order of the parts."""
        self.parts = {str(number): part for number, part in enumerate(parts, 1)}
        self.weights = dict(zip(self.parts, weights.values(), strict=True))
        addresses = [part.address for part in parts]
        self.source = json.dumps(dict(zip(addresses, weights.values(), strict=True)))
        self.root = Path("several sources")
        self.dropped = sum((part.dropped for part in parts), Counter[str]())
        self.in_rows = True  # where one part is a table, its rows come in order

    def names(self) -> list[str]:
        return sorted(f"{n}/{image_id}" for n, part in self.parts.items() for image_id in part.ids)

    def in_order(self, names: list[str]) -> list[str]:
        return sorted(names)

    def data(self, name: str) -> Data:
        part, image_id = self._part(name)
        return part.data(image_id)

    def file(self, name: str) -> Path | None:
        part, image_id = self._part(name)
        return part.file(image_id)

    def state(self, name: str) -> State:
        part, image_id = self._part(name)
        return part.state(image_id)

    def changed(self, name: str) -> bool:
        part, image_id = self._part(name)
        return part.changed(image_id)

    def weighted(self, names: Sequence[str], contents_N: np.ndarray) -> list[str]:
        """The largest choice of these images, none twice, in which each source has its share.

        ImageError where a source has no image.

        contents_N: hashes of the images, uint64, which decide who stays: no seed does, nor a path.
        """
        numbers = np.array([name.partition("/")[0] for name in names])
        counts = {n: int((numbers == n).sum()) for n in self.parts}
        if empty := [part.address for n, part in self.parts.items() if not counts[n]]:
            raise ImageError(f"No usable image in '{masked(empty[0])}', one of several sources.")
        largest = min(counts[n] / self.weights[n] for n in self.parts)
        kept = list[int]()
        for number, weight in self.weights.items():
            rows = np.flatnonzero(numbers == number)
            order = np.argsort(contents_N[rows] * SALT, kind="stable")
            kept += rows[order[: round(largest * weight)]].tolist()
        return [names[row] for row in sorted(kept)]

    def _part(self, name: str) -> tuple[Part, str]:
        number, _, image_id = name.partition("/")
        return self.parts[number], image_id
