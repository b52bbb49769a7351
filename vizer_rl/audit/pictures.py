"""Images as an audit shows them to rewards: as they are, blank, mildly changed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from ..data.perturb import View


@contextmanager
def aside(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of its own; outside, the next ones are what they would have been."""
    kept = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])


class Pictures(Sequence[Image]):
    """The image of each row, which `load` gives by its id, as `view` shows it."""

    def __init__(
        self, load: Callable[[str], Image], ids: Sequence[str], view: View | None = None
    ) -> None:
        self.load, self.ids, self.view = load, list(ids), view

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return Pictures(self.load, self.ids[row], self.view)
        image = self.load(self.ids[row])
        return self.view(image) if self.view else image
