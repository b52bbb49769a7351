"""Which images a run trains on, watches and is evaluated on."""

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
TRAIN_SCENES, HELDOUT_FROM, WATCH_FROM = 1024, 1_000_000, 1_500_000  # how many; scene numbers


def image_sets(run: Run, console: Console) -> tuple[ImageFolder, ImageFolder, ImageFolder]:
    """Images to train on, to watch, to evaluate on.

    Scenes are drawn on first use. Of a user's own images the last two are a choice that no seed
    moves, at most a tenth and a fifth, and never trained on.
    """
    if run.data.images is None:
        drawn = scenes.write(SCENES / "train", 0, TRAIN_SCENES)
        seen = scenes.write(SCENES / f"watch-{run.monitor.images}", WATCH_FROM, run.monitor.images)
        kept = scenes.write(SCENES / f"heldout-{run.data.heldout}", HELDOUT_FROM, run.data.heldout)
        images = ImageFolder.index(drawn, run.data.limit, run.seed)
        return images, ImageFolder.index(seen), ImageFolder.index(kept)
    every = ImageFolder.index(run.data.images)
    if len(every.ids) < 10:
        raise UserError(
            f"data.images {run.data.images!r} has {len(every.ids)} usable images: need 10"
        )
    ids = random.Random(0).sample(every.ids, len(every.ids))
    cuts = min(run.data.heldout, len(ids) // 5), min(run.monitor.images, len(ids) // 10)
    held, watch, rest = ids[: cuts[0]], ids[cuts[0] : sum(cuts)], ids[sum(cuts) :]
    if run.data.limit:
        rest = random.Random(run.seed).sample(rest, min(run.data.limit, len(rest)))
    if every.skipped:
        console.print(f"{len(every.skipped)} files skipped: see skipped.jsonl in the run directory")
    one, two, three = (replace(every, ids=sorted(some)) for some in (rest, watch, held))
    return one, two, three
