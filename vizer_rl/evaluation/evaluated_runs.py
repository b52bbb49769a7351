"""Evaluated runs read back: the captions of each, and the images that they have in common.

A run that was not evaluated, by another version or not to its end is one sentence.
"""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from ..config.run_dir import read_run
from ..data.scenes import truth_of
from ..errors import UserError
from ..files import read_json, read_jsonl
from .subject import run_directory_of

VERSION = 2  # of eval.json
NAMED = 3  # images that a sentence names


class Line(BaseModel):
    """A line of captions.jsonl, of it what a comparison reads.

    `cosines` has the held-out scores, `base_score` and `base_score:NAME` in the file.
    """

    model_config = ConfigDict(extra="allow")

    image_id: str
    base: str
    trained: str
    base_score: float | None = None
    trained_score: float | None = None
    base_doubtful: list[dict[str, Any]] | None = None
    trained_doubtful: list[dict[str, Any]] | None = None
    truth: str | None = None
    references: list[str] = []

    @model_validator(mode="after")
    def _numbers(self) -> Line:
        for key, value in (self.model_extra or {}).items():
            if key.startswith(("base_score:", "trained_score:")) and not isinstance(
                value, int | float
            ):
                raise ValueError(f"{key}: {value!r} is no number")
        return self

    def cosines(self, side: str, own: str) -> dict[str, float]:
        """The held-out scores of the "base" or "trained" caption by scorer; own: the run's."""
        start, score = f"{side}_score:", getattr(self, f"{side}_score")
        more = (self.model_extra or {}).items()
        further = {key.removeprefix(start): v for key, v in more if key.startswith(start)}
        return further if score is None else {own: score, **further}


class _Heldout(BaseModel):
    source: str
    drawn: bool


@dataclass(frozen=True)
class EvaluatedRun:
    """A run's name, held-out scorer, folder of images, truth of drawn ones, lines by image id."""

    name: str
    scorer: str
    root: Path
    truth: Path | None
    lines: dict[str, Line]


def read_runs(directories: Sequence[Path]) -> list[EvaluatedRun]:
    """The runs of two or more directories; UserError where one cannot be compared."""
    if len(directories) < 2:
        raise UserError("one run has nothing to be compared with: give --run NAME twice or more")
    resolved = [directory.resolve() for directory in directories]
    for directory, path in zip(directories, resolved, strict=True):
        if resolved.count(path) > 1:
            raise UserError(f"run '{directory}' is given twice: a run does not differ from itself")
    unique = len({directory.name for directory in directories}) == len(directories)
    return [_read(d, d.name if unique else str(d)) for d in directories]


def _read(directory: Path, name: str) -> EvaluatedRun:
    run_directory = run_directory_of(directory)  # or it is a folder of other images in that
    others = " --images …" if run_directory != directory else ""
    again = f"`vizer-rl evaluate --run {run_directory.name}{others}` writes it anew"
    if not (directory / "eval.json").is_file():
        raise UserError(f"run '{directory}' has no eval.json: {again}")
    result = read_json(directory / "eval.json", dict[str, Any])
    if (version := result.get("version", 1)) != VERSION:
        raise UserError(
            f"'{directory / 'eval.json'}' is of version {version}, this vizer_rl reads version "
            f"{VERSION}: {again}"
        )
    lines = {line.image_id: line for line in read_jsonl(directory / "captions.jsonl", Line)}
    if len(lines) != (count := result.get("n_images")):
        raise UserError(
            f"'{directory / 'captions.jsonl'}' has {len(lines)} of {count} images, so it was not "
            f"written to its end: {again}"
        )
    heldout = read_json(directory / "heldout.json", _Heldout)  # its folder need not be here
    root = Path(heldout.source)
    truth = truth_of(root)
    return EvaluatedRun(
        name,
        read_run(run_directory).scorer.heldout,
        root,
        truth if heldout.drawn and truth.is_file() else None,
        lines,
    )


def shared_images(runs: Sequence[EvaluatedRun]) -> tuple[list[str], list[str]]:
    """The images that all runs were evaluated on, and a sentence where there are others.

    UserError where there are none.
    """
    first, *others = runs
    ids = [i for i in first.lines if all(_same_image(first, run, i) for run in others)]
    if not ids:
        folders = ", ".join(f"{len(run.lines)} of '{run.root}' ({run.name})" for run in runs)
        raise UserError(f"the runs were evaluated on different images and share none: {folders}")
    kept, parts = set(ids), []
    for run in runs:
        if rest := [image_id for image_id in run.lines if image_id not in kept]:
            more = ", …" if len(rest) > NAMED else ""
            parts.append(f"{len(rest)} of {run.name} ({', '.join(rest[:NAMED])}{more})")
    return ids, [f"Not all were evaluated on the others: {', '.join(parts)}."] if parts else []


def _same_image(a: EvaluatedRun, b: EvaluatedRun, image_id: str) -> bool:
    """Whether both were evaluated on an image of this name: the same file, or the same bytes."""
    if image_id not in b.lines:
        return False
    paths = a.root / image_id, b.root / image_id
    return a.root == b.root or (
        all(path.is_file() for path in paths) and filecmp.cmp(*paths, shallow=False)
    )
