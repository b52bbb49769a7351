"""Journal of captions: a JSONL file that grows by lines, so that a kill loses none that is in it.

A line that was cut is cut off when the file is opened again. Each line names by a key the policy
and the settings that it comes from: captions of two policies are never mixed in one file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # typing's is no type for pydantic before Python 3.12

from ...errors import UserError, printable
from ...files import naming, write_jsonl
from .unsure_words import UnsureWord


class Doubtful(TypedDict):
    """A `DoubtfulWord`, as it is read back."""

    start: int
    end: int
    word: str
    instead: str


class Row(TypedDict):
    """The caption of an image; docs/captions.md has the meaning of each key."""

    image: str
    caption: str
    base: NotRequired[str]
    score: NotRequired[float]
    base_score: NotRequired[float]
    doubtful: NotRequired[list[Doubtful] | None]
    unsure: NotRequired[list[UnsureWord] | None]
    ended: bool
    bytes: int
    key: str


ROW: TypeAdapter[Row] = TypeAdapter(Row)


class Journal:
    """The rows of a journal by image, and the file that they are added to."""

    def __init__(self, path: Path, key: str, *, overwrite: bool = False) -> None:
        """Read what is there; UserError where that is not this job's, unless overwrite.

        overwrite: rows of other policies and settings are dropped, when a row is first written.
        """
        self.path, self.key = path, key
        self.rows: dict[str, Row] = {}
        self._whole = True  # whether the file holds these rows and nothing else
        content = _content(path)
        end = content.rfind(b"\n") + 1
        rows = [_row(line) for line in content[:end].splitlines()]
        torn = bool(content[end:])
        if rows and rows[-1] is None:  # what a power failure leaves may end with a line feed
            rows, torn = rows[:-1], True
        ours = [row for row in rows if row is not None]
        foreign = len(ours) < len(rows) or (torn and not ours and not _begun(content))
        others = [row for row in ours if row["key"] != key]
        if not overwrite and foreign:
            raise UserError(
                f"'{path}' exists and does not hold captions of this command: give another --to, "
                "or --overwrite to replace it"
            )
        if not overwrite and others:
            raise UserError(
                f"'{path}' holds captions ({len(others)}) of another policy, other settings or "
                "another folder: give another --to, or --overwrite to replace them"
            )
        self.rows = {row["image"]: row for row in ours if row["key"] == key}
        self._whole = len(self.rows) == len(rows) and not torn

    def keep(self, sizes: Mapping[str, int]) -> dict[str, Row]:
        """Drop the rows of images whose file has another size now, that is, were replaced.

        Returns them.
        """
        rows = self.rows.items()
        stale = {n: row for n, row in rows if sizes.get(n, row["bytes"]) != row["bytes"]}
        for name in stale:
            del self.rows[name]
            self._whole = False
        return stale

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows to the file, and do not return before the disk has them."""
        if not self._whole:
            self.rewrite(self.rows.values())
        with naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                self._whole = False  # until all of it is there
                file.write("".join(map(_line, rows)).encode())
                os.fsync(file.fileno())
        self._whole = True
        self.rows |= {row["image"]: row for row in rows}

    def rewrite(self, rows: Iterable[Row]) -> None:
        """Replace all rows at one stroke."""
        self.rows = {row["image"]: row for row in rows}
        write_jsonl(self.path, self.rows.values())
        self._whole = True

    def close(self) -> None:
        """Leave nothing in the file but the rows: also where none was added."""
        if not self._whole:
            self.rewrite(self.rows.values())


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from error


def _row(line: bytes) -> Row | None:
    try:
        return ROW.validate_json(line)
    except ValidationError:
        return None


def _begun(content: bytes) -> bool:
    """Whether a file without a whole line begins as one of ours does."""
    begin = b'{"image": '
    return content.startswith(begin) or begin.startswith(content)


def _line(row: Row) -> str:
    return printable(json.dumps(row, ensure_ascii=False)) + "\n"
