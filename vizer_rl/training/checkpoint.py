"""Resuming a run: its newest whole checkpoint, metrics cut back to it, what has changed since.

A checkpoint is written by algorithms/resumable.py; here a run directory is made ready to go on.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from transformers import TrainerCallback

from ..errors import Fault, UserError, user_message
from ..files import checkpoints, damage, write_text
from .launch import devices_flag

SECONDS = 600.0  # between two checkpoints, where train.save_steps come later than that


def newest_whole(directory: Path, report: Callable[[str], object]) -> Path:
    """The newest checkpoint that is as it was written; `report` hears of those that are not.

    Raises UserError where there is none.
    """
    for folder in checkpoints(directory):
        if not (fault := damage(folder)):
            return folder
        report(f"{folder} is damaged ({fault}): the one before it is taken")
    raise UserError(f"nothing to resume: no checkpoint of {directory} is whole")


def step_of(checkpoint: Path) -> int:
    """The number of steps that a checkpoint has behind it."""
    return int(checkpoint.name.rpartition("-")[2])


def check_processes(checkpoint: Path, processes: int) -> None:
    """UserError where a checkpoint is of another number of processes than now go on from it.

    Each has its own random state and its share of a rollout, and a step takes as many images more.
    """
    before = len([*checkpoint.glob("state_*.pt")])
    if processes != before:
        raise UserError(
            f"{checkpoint} is of a run of {before} process{'es' * (before > 1)}, this would be one "
            f"of {processes}: start it on {before} (vizer-rl train … --devices {before}), or begin "
            "a new run under another name"
        )


class _Row(BaseModel):
    step: int


def cut_metrics(path: Path, checkpoint: Path) -> str:
    """Leave in metrics.jsonl the rows up to a checkpoint's step, so that none comes twice.

    Rows that cannot be read, as the one that was being written when the run was killed, are left
    out; a line names them, "" where there are none.
    """
    step, rows, unreadable = step_of(checkpoint), [], []
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.is_file() else [], 1):
        try:
            if line and _Row.model_validate_json(line, strict=True).step <= step:
                rows.append(f"{line.decode()}\n")
        except (ValidationError, UnicodeDecodeError):
            unreadable.append(str(number))
    write_text(path, "".join(rows))
    lines = ", ".join(unreadable)
    return f"{path}: what cannot be read is left out (line {lines})\n" if lines else ""


def check_changes(
    changes: tuple[list[str], bool], accepted: bool, report: Callable[[str], object]
) -> None:
    """Report what differs from the run that goes on; UserError where it is another run.

    changes: lines and whether results are those of one run; accepted: go on in any case.
    """
    lines, same = changes
    listed = "\n".join(f"  {line}" for line in lines)
    if not (same or accepted):
        raise UserError(
            "this would not be the run that was stopped; give it another name, undo what differs, "
            f"or go on all the same with --accept-changes:\n{listed}"
        )
    if lines:
        report(f"since the run was stopped these have changed:\n{listed}")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the run directory, making it where it is not there; UserError where another run does.

    The lock is of the folder itself and ends with the process, however that ends.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UserError(
            f"{directory} is in use by a run that is going on: wait for it or give another name"
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)
        with suppress(OSError):  # not empty: the run has begun
            directory.rmdir()


@contextmanager
def last_checkpoint_named(directory: Path) -> Iterator[None]:
    """Inside, a fault that is no bug ends with the newest whole checkpoint and the way on."""
    try:
        yield
    except Exception as error:
        message = user_message(error)
        if message is None or (isinstance(error, UserError) and not isinstance(error, Fault)):
            raise
        raise UserError(f"{message}\n{way_on(directory)}") from error


def way_on(directory: Path, overrides: str = "") -> str:
    """The newest whole checkpoint and the command that goes on from it; else how to begin anew."""
    file = shlex.quote(str(directory / "config.yaml"))
    command = f"vizer-rl train {file} {overrides}".rstrip() + devices_flag()
    newest = next((folder for folder in checkpoints(directory) if not damage(folder)), None)
    if newest is None:
        return f"There is no checkpoint yet. Begin again with:\n  {command} --overwrite"
    accept = " --accept-changes" if overrides else ""
    return f"{newest} is intact. Go on from it with:\n  {command} --resume{accept}"


def clear(directory: Path) -> None:
    """Delete all that a run directory holds."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


class SaveInTime(TrainerCallback):
    """Asks for a checkpoint where the last one is SECONDS old."""

    def __init__(self) -> None:
        self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if time.monotonic() - self._saved >= SECONDS:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._saved = time.monotonic()
