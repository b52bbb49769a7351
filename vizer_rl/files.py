"""Atomic files: written aside, synced and renamed, so that a crash leaves the old or the new one.

A sealed folder has the checksum of each of its files; what was half written, or damaged since, is
named by `damage` and never taken for whole. A disk that does not take a file is a Fault, which
names it. `read_json` and `load_tensors` are how files of a run
are read back: checked, and without running anything that they hold.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from .errors import Fault, UserError, disk_fault, printable

CHECKSUMS = "checksums.json"  # of a sealed folder: {file: blake2b of its bytes}


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Inside, a write that the disk does not take is a Fault that names this file or folder."""
    try:
        yield
    except Exception as error:  # of torch and safetensors too, which have classes of their own
        if not (reason := disk_fault(error)) or isinstance(error, Fault):
            raise
        raise Fault(f"'{path}' cannot be written: {reason}") from error


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then put that in its place; a Fault leaves `path`."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(part)
            _sync(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        _sync(path.parent)


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Inside, no other process is with this path: each waits for its turn. A Fault as of a write.

    The lock is of a file beside it, and ends with the process, however that ends.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def append_text(path: Path, text: str) -> None:
    """Add to a text file in UTF-8, on a line of its own."""
    with naming(path), path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            text = text if file.read() == b"\n" else f"\n{text}"  # what was cut ends there
        file.write(text.encode())


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one object per line, readable in any script; what `printable` escapes is escaped."""
    lines = [printable(json.dumps(row, ensure_ascii=False)) + "\n" for row in rows]
    write_text(path, "".join(lines))


def read_json(path: Path, kind: Any) -> Any:
    """The content of a JSON file, of this type; UserError names the file and what is wrong."""
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "".join(f"{key}: " for key in first["loc"])
        raise UserError(
            f"'{path}' cannot be used: {where}{first['msg']}; it was cut, changed or written by "
            "another version of vizer_rl"
        ) from error


def read_jsonl(path: Path, kind: Any) -> list[Any]:
    """The lines of a JSONL file, each of this type; UserError names file, line and fault."""
    adapter = TypeAdapter(kind)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(adapter.validate_json(line))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise UserError(
                f"'{path}' cannot be used: line {number}: {first['msg']}; it was cut, changed or "
                "written by another version of vizer_rl"
            ) from error
    return rows


def load_tensors(path: Path) -> Any:
    """Tensors and plain values of a file of `torch.save`, on the CPU; UserError names the file."""
    import torch

    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # on damaged bytes torch raises almost anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"'{path}' cannot be read: {reason:.200}") from error


def add_checksums(folder: Path) -> None:
    """Write the checksum of each file of a folder beside them."""
    sums = {file: _checksum(folder / file) for file in _files(folder)}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=1))


def seal(folder: Path, target: Path) -> None:
    """Add the checksums of a folder's files, sync all of it and rename it to `target`.

    What was there before goes aside and then away: killed anywhere in between, `whole` has one.
    """
    add_checksums(folder)
    for path in [*folder.rglob("*"), folder]:
        _sync(path)
    if target.exists():
        shutil.rmtree(_aside(target, "old"), ignore_errors=True)
        target.rename(_aside(target, "old"))
    folder.rename(target)
    _sync(target.parent)
    shutil.rmtree(_aside(target, "old"), ignore_errors=True)


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """An empty folder to fill, which at the end is sealed and takes the place of `target`."""
    part = _aside(target, "part")
    with naming(target):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        seal(part, target)


def whole(target: Path) -> Path:
    """A folder that is `replaced`, wherever that was broken off: itself, its successor or itself
    put aside; where there is none, its name."""
    asides = (_aside(target, "part"), _aside(target, "old"))
    left = [] if target.exists() else [a for a in asides if a.is_dir() and not damage(a)]
    return left[0] if left else target


def _aside(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}")


def damage(folder: Path) -> str:
    """What is wrong with a sealed folder, "" if nothing: the file and what became of it."""
    if not (folder / CHECKSUMS).is_file():
        return f"it has no {CHECKSUMS}, so it was not written to its end"
    try:
        sums = read_json(folder / CHECKSUMS, dict[str, str])
    except UserError:
        return f"{CHECKSUMS} cannot be read"
    if unlisted := {*_files(folder)} - {*sums}:
        return f"{CHECKSUMS} lacks {min(unlisted)}"
    for file, checksum in sums.items():
        if not (folder / file).is_file():
            return f"{file} is not there any more"
        if _checksum(folder / file) != checksum:
            return f"{file} is not what was written"
    return ""


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoint-N folders of a run directory, the newest first."""
    folders = [p for p in directory.glob("checkpoint-*") if p.name[11:].isdecimal()]
    return sorted(folders, key=lambda p: int(p.name[11:]), reverse=True)


def _files(folder: Path) -> list[str]:
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    return sorted(name for name in names if name != CHECKSUMS)


def _checksum(path: Path) -> str:
    checksum = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(2**20):
            checksum.update(block)
    return checksum.hexdigest()


def _sync(path: Path) -> None:
    """Bring a file's or a folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
