"""Stores: images that are no files of their own, as members of an archive or rows of a table are.

A store knows names and gives the encoded bytes of one: no image is decoded, nothing is written to
disk, and nothing but an image comes out. Stores are pickled to workers: they hold no open file.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Protocol

State = tuple[int, int] | None  # size in bytes and time of change in ns; None: not there
MAX_BYTES = 2**28  # of one image: an archive's member that unpacks to more is not read


class Store(Protocol):
    """Images by name, in files that hold many.

    root: the folder below which the names lie; source: what opens this store again from any working
    directory; dropped: what stands beside the images and is never read, with how many there are;
    in_rows: images that lie close by are read together, so that one after another is quicker.
    """

    root: Path
    source: str
    dropped: Counter[str]
    in_rows: bool

    def names(self) -> list[str]:
        """All names, sorted."""

    def in_order(self, names: list[str]) -> list[str]:
        """These names in the order in which they are stored."""

    def data(self, name: str) -> Path | bytes:
        """The encoded bytes of an image, or the file that is one; ImageError(reason)."""

    def state(self, name: str) -> State:
        """State of the file that holds it, when that was opened."""

    def changed(self, name: str) -> bool:
        """Whether that file is another one now."""


def file_state(path: Path | str) -> State:
    """Size and time of change of a file; None where there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def check_bytes(count: int) -> str:
    """Why an image of so many bytes is not read, "" where it is."""
    return f"more than {MAX_BYTES >> 20} MiB" if count > MAX_BYTES else ""
