"""What the page's script shows: curves in few points, captions with scores, pictures that fit.

A page has a budget of bytes; captions come first, and the pictures share what is left.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePosixPath
from typing import Any

from ...data.open_source import is_folder
from ...data.sources import ImageFolder, reopen_images
from ...errors import ImageError
from .formats import CaptionRow, Doubt
from .html import picture
from .labels import CURVES, SIDES, curve, is_reward
from .run_files import RunFiles

MAX_IMAGES = 1000  # of a run; of more, a random thousand
MAX_POINTS = 300  # of a curve
PICTURE_BYTES = 7_200_000  # of all pictures together, in base64
MAX_PICTURE = 24_000  # characters of one


def series(rows: Sequence[dict[str, float]]) -> dict[str, list[list[float]]]:
    """Key -> [steps, values] of every logged number, long ones as means of neighbours."""
    keys = dict.fromkeys(key for row in rows for key in row if key not in ("step", "epoch"))
    curves = {}
    for key in keys:
        points = [(row["step"], row[key]) for row in rows if key in row and "step" in row]
        size = -(-len(points) // MAX_POINTS) or 1
        groups = [points[i : i + size] for i in range(0, len(points), size)]
        means = [[sum(axis) / len(group) for axis in zip(*group, strict=True)] for group in groups]
        if means:
            curves[key] = [[float(f"{mean[axis]:.5g}") for mean in means] for axis in (0, 1)]
    return curves


def curve_groups(runs: Sequence[RunFiles]) -> list[list[Any]]:
    """[title, [[key, title, sentence], …]] of all keys: those with a label first, then the rest."""
    keys = list(dict.fromkeys(key for run in runs for row in run.metrics for key in row))
    keys = [key for key in keys if key not in ("step", "epoch")]
    rewards = [key for key in keys if is_reward(key)]
    listed = [key for key in CURVES if key in keys]
    rest = sorted({*keys} - {*rewards, *listed})
    titles = (("Training", listed), ("Each reward, raw", rewards), ("All other keys", rest))
    return [
        [title, [[key, curve(key).title, curve(key).about] for key in group]]
        for title, group in titles
        if group
    ]


def kept_step(run: RunFiles) -> float | None:
    """The step whose adapter was kept: the first with its held-out score."""
    key = "heldout/score"
    matches = [row["step"] for row in run.metrics if key in row and row[key] == run.kept_score]
    return matches[0] if matches else None


def shown(run: RunFiles) -> list[CaptionRow]:
    """The captions on the page: all, or a random thousand, always the same."""
    if len(run.captions) <= MAX_IMAGES:
        return run.captions
    chosen = random.Random(0).sample(range(len(run.captions)), MAX_IMAGES)
    run.left_out.append(
        f"Captions: a random {MAX_IMAGES} of {len(run.captions)} images; "
        "captions.jsonl has them all."
    )
    return [run.captions[index] for index in sorted(chosen)]


def caption_rows(rows: Sequence[CaptionRow], pictures: dict[str, int]) -> Iterator[dict[str, Any]]:
    """What a card shows, without what it lacks; pictures: image id -> its number on the page."""
    for row in rows:
        rewards = {
            name: [row.base_rewards[name], value]
            for name, value in row.trained_rewards.items()
            if name in row.base_rewards
        }
        card: dict[str, Any] = {
            "id": row.image_id,
            "picture": pictures.get(row.image_id),
            "base": row.base,
            "trained": row.trained,
            "truth": [row.truth] if row.truth else row.references,
            "scores": {n: [_short(b), _short(t)] for n, (b, t) in row.scores().items()},
            "controls": {
                SIDES.get(n, n.replace("_", " ")): {"caption": c.caption, "score": _short(c.score)}
                for n, c in row.controls.items()
            },
            "rewards": {n: [_short(b), _short(t)] for n, (b, t) in rewards.items()},
        }
        for side, doubts in (("base", row.base_doubtful), ("trained", row.trained_doubtful)):
            if doubts is not None:
                card[f"{side}_doubtful"] = _words(getattr(row, side), doubts)
        yield card


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _words(caption: str, doubts: Sequence[Doubt]) -> list[list[Any]]:
    """[number of the word, what fits better] of each doubtful word; words end at a space."""
    return [
        [caption[: doubt.start].count(" "), doubt.instead or ""]
        for doubt in doubts
        if caption[doubt.start : doubt.end] == doubt.word  # else its caption was escaped
    ]


def read_pictures(
    runs: Sequence[RunFiles], captions: Sequence[Sequence[CaptionRow]]
) -> tuple[list[str], list[dict[str, int]]]:
    """All pictures, each once, and of each run image id -> number; what fails is left out."""
    wanted = dict[tuple[str, str], int]()
    for run, rows in zip(runs, captions, strict=True):
        if run.images and is_folder(run.images) and not Path(run.images).is_dir():
            run.left_out.append(f"Pictures: the folder of images '{run.images}' is not there.")
        elif run.images:
            wanted |= {(run.images, row.image_id): 0 for row in rows}
    sources = {address: _reopened(address) for address in dict.fromkeys(a for a, _ in wanted)}
    limit = min(MAX_PICTURE, PICTURE_BYTES // max(1, len(wanted)))
    with ThreadPool() as pool:
        read = pool.map(lambda key: _picture(sources[key[0]], key[1], limit), wanted, chunksize=4)
    pictures = [source for source in read if source]
    numbers = iter(range(len(pictures)))
    number_of = {k: next(numbers) for k, source in zip(wanted, read, strict=True) if source}
    for run, rows in zip(runs, captions, strict=True):
        ids = [row.image_id for row in rows if (run.images or "", row.image_id) in wanted]
        failed = [i for i in ids if (run.images or "", i) not in number_of]
        if failed:
            run.left_out.append(
                f"Pictures: {len(failed)} of {len(ids)} in '{run.images}' cannot be read; the "
                f"first is {failed[0]}."
            )
    return pictures, [
        {i: n for (folder, i), n in number_of.items() if folder == run.images} for run in runs
    ]


def _reopened(address: str) -> ImageFolder | None:
    """The images at an address; None where they cannot be opened: then each picture fails."""
    try:
        return reopen_images(address, [])
    except ImageError:
        return None


def _picture(images: ImageFolder | None, image_id: str, limit: int) -> str:
    """A picture in base64; "" where there is none, or where the name leads out of its folder."""
    path = PurePosixPath(image_id)
    if images is None or path.is_absolute() or ".." in path.parts:
        return ""
    try:
        return picture(images.load(image_id), limit)
    except ImageError:
        return ""
