"""Images as an audit shows them to rewards: as they are, blank, mildly changed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import ImageStat
from PIL.Image import Image, Resampling, new

CROP, LIGHT = 0.94, 0.06  # mild changes: side kept, brightness changed at most by


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
    """The image of each row: an id of the run's images, seen as `view` shows it."""

    def __init__(self, load: Any, ids: Sequence[str], view: Any = None) -> None:
        self.load, self.ids, self.view = load, list(ids), view

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return Pictures(self.load, self.ids[row], self.view)
        image = self.load(self.ids[row])
        return self.view(image, f"{self.ids[row]}") if self.view else image


def blank(image: Image, _: str) -> Image:
    """Nothing but the image's mean colour."""
    mean = [round(v) for v in ImageStat.Stat(image).mean]
    return new("RGB", image.size, (mean[0], mean[1], mean[2]))


def augmented(turn: int) -> Any:
    """A view: a little less of the image, a little lighter or darker; never flipped."""

    def view(image: Image, image_id: str) -> Image:
        rng = random.Random(f"{turn}{image_id}")
        width, height = (round(CROP * side) for side in image.size)
        x, y = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        part = image.crop((x, y, x + width, y + height)).resize(image.size, Resampling.BICUBIC)
        light = 1 + rng.uniform(-LIGHT, LIGHT)
        return part.point(lambda value: value * light)

    return view
