"""Disk cache: results kept between runs, each whole or computed anew, and never needed to go on.

An entry is a checksum and its content. One that is damaged is named and deleted; a folder that
cannot be used is reported once and done without. Several runs may write one entry at a time.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path

SIZE = 16  # bytes of the checksum


def read(path: Path) -> bytes | None:
    """The content of an entry, None where there is none that is whole."""
    with tolerated(path.parent), suppress(FileNotFoundError):
        entry = path.read_bytes()
        if entry[:SIZE] == _checksum(path, entry[SIZE:]):
            return entry[SIZE:]
        discard(path, "it is not what was written")
    return None


def write(path: Path, content: bytes) -> None:
    """Keep an entry; a folder that does not take it is reported."""
    with tolerated(path.parent):
        replace(path, _checksum(path, content) + content)


def replace(path: Path, content: bytes) -> None:
    """Put a file in the place of another, whole or not at all; OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")  # no other process writes that
    try:
        draft.write_bytes(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def discard(path: Path, reason: str) -> None:
    """Name an entry that cannot be used, and delete it."""
    warnings.warn(f"{path} is computed anew: {reason}", stacklevel=3)
    path.unlink(missing_ok=True)


@contextmanager
def tolerated(folder: Path) -> Iterator[None]:
    """Inside, a folder that cannot be used is no error: it is reported, the first time."""
    try:
        yield
    except OSError as error:
        _report(folder, error.strerror or str(error))


@cache
def _report(folder: Path, reason: str) -> None:
    text = f"cache {folder} cannot be used ({reason}): this run goes on without it"
    warnings.warn(text, stacklevel=5)


def _checksum(path: Path, content: bytes) -> bytes:
    checksum = blake2b(path.name.encode(), digest_size=SIZE)  # under another name it is no entry
    checksum.update(content)
    return checksum.digest()
