"""Run directory as far as it can be read: whatever is missing, cut or of another version is named.

A report is written of runs that broke off, too, so nothing here stops it but a directory that holds
nothing of a run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ...config.overrides import read_yaml
from ...errors import UserError, printable
from ..subject import OTHER, run_directory_of
from .formats import Alarm, Audit, CaptionRow, Evaluation, Heldout, Score, is_number


@dataclass
class RunFiles:
    """What a run directory holds; `left_out` has a sentence for each thing that it does not.

    evaluated: where the evaluation lies, the run directory, or a folder of other images in it.
    """

    directory: Path
    evaluated: Path
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, float]] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)
    evaluation: Evaluation | None = None
    captions: list[CaptionRow] = field(default_factory=list)
    audit: Audit | None = None
    wandb: dict[str, Any] = field(default_factory=dict)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    images: str | None = None  # the address of the held-out images, mostly a folder
    kept_score: float | None = None  # held-out score of the adapter that was kept
    left_out: list[str] = field(default_factory=list)

    @property
    def run(self) -> str:
        """The name of the run: its directory's."""
        return self.directory.resolve().name

    @property
    def name(self) -> str:
        """What the page calls it: the run, and what other images it was evaluated on."""
        other = self.evaluated.name.removeprefix(OTHER)
        return f"{self.run} on {other}" if self.on_others else self.run

    @property
    def on_others(self) -> bool:
        """Whether it was evaluated on other images than the run's held-out ones."""
        return self.evaluated != self.directory


def read_run_files(evaluated: Path) -> RunFiles:
    """Read what can be read of a run, or of a folder in it that `evaluate --images` has written.

    UserError where it holds nothing of a run.
    """
    directory, missing = run_directory_of(evaluated), list[str]()

    def read(file: str, kind: Any, what: str, empty: Any = None, folder: Path = directory) -> Any:
        def parse(path: Path) -> Any:
            return _parse(path.read_bytes(), TypeAdapter(kind))

        return _read(folder / file, parse, what, empty, missing)

    def rows(file: str, kind: Any, what: str, folder: Path = directory) -> list[Any]:
        return _rows(folder / file, kind, what, missing)

    heldout = read("heldout.json", Heldout, "Pictures", folder=evaluated)
    kept = read("adapter/heldout.json", Score, "")
    run = RunFiles(
        directory,
        evaluated,
        settings=_read(directory / "config.yaml", read_yaml, "Settings", {}, missing),
        environment=read("environment.json", dict[str, Any], "Machine and versions", {}),
        metrics=[_numbers(row) for row in rows("metrics.jsonl", dict[str, Any], "Curves")],
        alarms=rows("alarms.jsonl", Alarm, ""),
        evaluation=read("eval.json", Evaluation, "Result", folder=evaluated),
        captions=rows("captions.jsonl", CaptionRow, "Captions", evaluated),
        audit=read("audit.json", Audit, "Audit"),
        wandb=read("wandb.json", dict[str, Any], "", {}),
        skipped=rows("skipped.jsonl", dict[str, Any], ""),
        images=heldout.source if heldout else None,
        kept_score=kept.score if kept else None,
        left_out=missing,
    )
    if not any((run.settings, run.metrics, run.evaluation, run.captions, run.audit)):
        raise UserError(
            f"'{directory}' holds nothing of a run: no config.yaml, metrics.jsonl, eval.json, "
            "captions.jsonl or audit.json that can be read"
        )
    if run.evaluation:
        missing += run.evaluation.left_out
    return run


def _read(
    path: Path, read: Callable[[Path], Any], what: str, empty: Any, missing: list[str]
) -> Any:
    """A file's content; else `empty`, and a sentence on it unless the file may be missing."""
    if not path.is_file():
        if what:
            missing.append(f"{what}: {path.name} is not there.")
        return empty
    try:
        return read(path)
    except OSError as error:
        missing.append(f"{what or path.name}: {path.name} cannot be read: {error.strerror}.")
    except _Unreadable as error:
        wrong = "it was cut, changed or written by another version of vizer_rl"
        missing.append(f"{what or path.name}: {path.name} cannot be used: {error}; {wrong}.")
    except UserError as error:
        missing.append(f"{what or path.name}: {error}.")
    return empty


def _rows(path: Path, kind: Any, what: str, missing: list[str]) -> list[Any]:
    """The good lines of a JSONL file; a sentence says how many are not, and where the first is."""
    content = _read(path, lambda p: p.read_bytes().splitlines(), what, [], missing)
    adapter, good, bad = TypeAdapter(kind), list[Any](), list[int]()
    for line_number, line in enumerate(content, 1):
        try:
            good.append(_parse(line, adapter))
        except _Unreadable:
            bad.append(line_number)
    if bad:
        cut = "half-written" if bad == [len(content)] else "cut, changed or of another version"
        missing.append(
            f"{what or path.name}: {len(bad)} of {len(content)} lines of {path.name} "
            f"cannot be read (the first is line {bad[0]}: {cut})."
        )
    return good


class _Unreadable(ValueError):
    """What is wrong with a piece of JSON, as the middle of a sentence."""


def _parse(source: bytes, adapter: TypeAdapter[Any]) -> Any:
    """JSON of this type, its text printable; _Unreadable."""
    try:
        return adapter.validate_python(_printable(json.loads(source)), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "".join(f"{key}: " for key in first["loc"])
        raise _Unreadable(where + first["msg"]) from error
    except (ValueError, RecursionError) as error:
        raise _Unreadable(str(error)) from error


def _printable(content: Any) -> Any:
    """JSON whose texts are what a terminal and a page can show: no model takes half a character."""
    if isinstance(content, str):
        return printable(content)
    if isinstance(content, list):
        return [_printable(value) for value in content]
    if isinstance(content, dict):
        return {printable(key): _printable(value) for key, value in content.items()}
    return content


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """What of a logged object is a number."""
    return {key: float(value) for key, value in row.items() if is_number(value)}
