"""Splits of a run's images: those it trains on, is monitored on and is evaluated on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from rich.console import Console

from ..config.schema import Run
from ..data import scenes
from ..data.content_split import ContentSplit, content_split
from ..data.open_source import Sources
from ..data.sources import ImageFolder
from ..errors import UserError, printable

SCENES = Path("data/scenes")
FACTS = Path("data/cache/facts")
DROPPED = 8  # kinds that are named
TRAIN_SCENES = 1024
HELDOUT_START, MONITOR_START = 1_000_000, 1_500_000  # numbers of the first scenes
MIN_IMAGES = 10


def image_sets(run: Run, console: Console) -> tuple[ImageFolder, ImageFolder, ImageFolder]:
    """Images to train on, to monitor on, to evaluate on.

    Scenes are drawn on first use, each set from numbers of its own. Of a user's own images the last
    two are chosen by content (`content_split`), at most a tenth and a fifth, and never trained on,
    nor is what looks like them.
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

    def report(sentence: str) -> None:
        console.print(printable(sentence), soft_wrap=True, markup=False)

    usable = index(run.data.images, report)
    if len(usable.ids) < MIN_IMAGES:
        raise UserError(
            f"data.images {run.data.images!r} has {len(usable.ids)} usable images: "
            f"need {MIN_IMAGES}"
        )
    split = content_split(usable.ids, usable.facts_of(usable.ids), monitored, heldout)
    if not (split.train and split.watched):
        raise UserError(
            f"data.images {run.data.images!r} has {len(usable.ids)} images, too few that differ: "
            f"{len(split.left_out)} repeat a held-out image or are near it"
        )
    for image_id, other in split.left_out.items():
        reason = f"it repeats {other}, which is held out, or is near it"
        usable.skipped[usable.place(image_id)] = reason
    for sentence in _sentences(usable, split):
        report(sentence)
    train = split.train
    if run.data.limit:
        limit = min(run.data.limit, len(train))
        train = sorted(random.Random(run.seed).sample(train, limit))
    parts = train, split.watched, split.heldout
    own = [replace(usable, ids=part, compared=(), facts=None) for part in parts]
    return own[0], own[1], own[2]


def index(source: Sources, report: Callable[[str], object]) -> ImageFolder:
    """A user's own images with their facts, which are kept for the next start."""
    key = blake2b(f"{source}\n{Path.cwd()}".encode(errors="surrogateescape"), digest_size=8)
    return ImageFolder.index(source, decoded=FACTS / f"{key.hexdigest()}.npy", report=report)


def _sentences(images: ImageFolder, split: ContentSplit) -> Iterator[str]:
    """What a run says of its images: what was not read, skipped or is there twice."""
    if dropped := images.dropped:
        names = ", ".join(f"{name} ({count})" for name, count in dropped.most_common(DROPPED))
        more = f" and {len(dropped) - DROPPED} kinds more" if len(dropped) > DROPPED else ""
        yield f"only pixels are read; not read: {names}{more}"
    if split.exact or split.near:
        yield (
            f"duplicates: {split.exact} images repeat another one, {split.near} or more are near "
            f"another one; {len(split.left_out)} that are like a held-out image are not trained on"
        )
    if images.skipped:
        yield f"{len(images.skipped)} files skipped: see skipped.jsonl in the run directory"
