"""Splits of a run's images: those it trains on, is monitored on and is evaluated on."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ..config.schema import Run
from ..data import scenes
from ..data.sources import ImageFolder
from ..errors import UserError

SCENES = Path("data/scenes")
DECODED = Path("data/cache/decoded.txt")
TRAIN_SCENES = 1024
HELDOUT_START, MONITOR_START = 1_000_000, 1_500_000  # numbers of the first scenes
MIN_IMAGES = 10


def image_sets(run: Run, console: Console) -> tuple[ImageFolder, ImageFolder, ImageFolder]:
    """Images to train on, to monitor on, to evaluate on.

    Scenes are drawn on first use. Of a user's own images the last two are a choice that no seed
    moves, at most a tenth and a fifth, and never trained on.
    """
    monitored, heldout = run.monitor.images, run.data.heldout
    if run.data.images is None:
        folders = (
            scenes.write(SCENES / "train", 0, TRAIN_SCENES),
            scenes.write(SCENES / f"watch-{monitored}", MONITOR_START, monitored),
            scenes.write(SCENES / f"heldout-{heldout}", HELDOUT_START, heldout),
        )
        images = ImageFolder.index(folders[0], run.data.limit, run.seed)
        return images, ImageFolder.index(folders[1]), ImageFolder.index(folders[2])
    usable = ImageFolder.index(run.data.images, decoded=DECODED)
    if len(usable.ids) < MIN_IMAGES:
        raise UserError(
            f"data.images {run.data.images!r} has {len(usable.ids)} usable images: "
            f"need {MIN_IMAGES}"
        )
    ids = random.Random(0).sample(usable.ids, len(usable.ids))
    cuts = min(heldout, len(ids) // 5), min(monitored, len(ids) // 10)
    parts = ids[sum(cuts) :], ids[cuts[0] : sum(cuts)], ids[: cuts[0]]
    if run.data.limit:
        limit = min(run.data.limit, len(parts[0]))
        parts = random.Random(run.seed).sample(parts[0], limit), *parts[1:]
    if usable.skipped:
        count = len(usable.skipped)
        console.print(f"{count} files skipped: see skipped.jsonl in the run directory")
    train, monitor, evaluation = (replace(usable, ids=sorted(part)) for part in parts)
    return train, monitor, evaluation
