"""Tables: the images in a column of parquet or arrow files, read by row where they lie.

pyarrow reads the one column that holds images and no other. A parquet file is read by its row
groups, of which the last few are kept; an arrow file is mapped into memory.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections import Counter
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ImageError, nearest_allowed
from .found_files import find_shards
from .stores import State, check_bytes, file_state

SUFFIXES = (".parquet", ".arrow")
MAX_GROUP = 2**31  # bytes of the images of a row group
KEPT_GROUPS = 4  # row groups of a parquet file that are held at a time, images alone
_locks: dict[int, Lock] = {}  # by process: one that a fork copies may be held for ever


class Tables:
    """Images in rows of tables; a name is `FILE/ROW`."""

    in_rows = True

    def __init__(self, pattern: str, column: str = "") -> None:
        """pattern: one file, a glob or numbered shards; column: "" where only one holds images."""
        self.root, self.files = find_shards(pattern)
        self.states = [file_state(path) for path in self.files]
        self.dropped, self.starts, self._prefixes = Counter[str](), [0], dict[str, int]()
        self.column = column
        for number, path in enumerate(self.files):
            schema, self.column, rows = _read_schema(path, self.column)
            others = [name for name in schema.names if name != self.column]
            self.dropped.update({f"column {name}": rows for name in others})
            self._prefixes[path.absolute().relative_to(self.root).as_posix()] = number
            self.starts.append(self.starts[-1] + rows)
        if not self.starts[-1]:
            raise ImageError(f"'{pattern}' holds no row.")
        self.source = f"{Path(pattern).expanduser().absolute()}#{self.column}"

    def names(self) -> list[str]:
        counts = {p: self.starts[n + 1] - self.starts[n] for p, n in self._prefixes.items()}
        return sorted(f"{prefix}/{row:08d}" for prefix in counts for row in range(counts[prefix]))

    def in_order(self, names: list[str]) -> list[str]:
        return sorted(names)

    def state(self, name: str) -> State:
        return self.states[self._place(name)[0]]

    def changed(self, name: str) -> bool:
        number = self._place(name)[0]
        return file_state(self.files[number]) != self.states[number]

    def data(self, name: str) -> bytes:
        number, row = self._place(name)
        path, state = self.files[number], self.states[number]
        try:
            with _locks.setdefault(os.getpid(), Lock()):
                cell = _cell(path, state, self.column, row)
        except (pa.ArrowException, OSError, IndexError) as error:
            raise ImageError(f"cannot be read: {error}") from error
        return cell_bytes(cell)

    def _place(self, name: str) -> tuple[int, int]:
        prefix, _, row = name.rpartition("/")
        if prefix not in self._prefixes or not row.isdecimal():
            raise ImageError("cannot be read: no such row")
        return self._prefixes[prefix], int(row)


def image_column(schema: pa.Schema, column: str, where: str) -> str:
    """The column that holds images; ImageError where it does not, there is none or several."""
    candidates = image_columns(schema)
    if column and column not in schema.names:
        raise ImageError(
            f"'{where}' has no column {column!r}; {nearest_allowed(column, candidates)}."
        )
    if column and column not in candidates:
        kind = schema.field(column).type
        allowed = f"{nearest_allowed(column, candidates)}"
        raise ImageError(f"column {column!r} of '{where}' holds {kind}, no images; {allowed}.")
    if not candidates:
        names = ", ".join(schema.names)
        raise ImageError(f"'{where}' has no column of images: it has {names or 'no column'}.")
    if not column and len(candidates) > 1:
        names = ", ".join(candidates)
        raise ImageError(
            f"'{where}' has several columns of images, {names}: name one, as in {where}#"
            f"{candidates[0]}"
        )
    return column or candidates[0]


def image_columns(schema: pa.Schema) -> list[str]:
    """Columns that can hold images: those that `datasets` marks so; else bytes, or rows of them."""
    metadata = (schema.metadata or {}).get(b"huggingface", b"{}")
    features = json.loads(metadata).get("info", {}).get("features", {})
    marked = [n for n in schema.names if (features.get(n) or {}).get("_type") == "Image"]
    return marked or [field.name for field in schema if _holds_bytes(field.type)]


def cell_bytes(cell: Any) -> bytes:
    """The encoded image of a cell: bytes, or {"bytes": …, "path": …} as `datasets` writes it."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if isinstance(cell, dict) and content is None and cell.get("path"):
        raise ImageError("its row names a file and holds no image")
    if not isinstance(content, bytes):
        raise ImageError("its row holds no image")
    if reason := check_bytes(len(content)):
        raise ImageError(reason)
    return content


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return any(
        test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary)
    ) or pa.types.is_binary_view(kind)


def _read_schema(path: Path, column: str) -> tuple[pa.Schema, str, int]:
    """Schema, column of images and number of rows of a table; ImageError where it is none."""
    try:
        if path.suffix.lower() == ".arrow":
            table = _mapped(path, file_state(path), os.getpid())
            return table.schema, image_column(table.schema, column, str(path)), table.num_rows
        with pq.ParquetFile(path) as file:
            column = image_column(file.schema_arrow, column, str(path))
            _check_groups(file.metadata, column, path)
            return file.schema_arrow, column, file.metadata.num_rows
    except ImageError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        detail = str(error).splitlines()[0]
        raise ImageError(f"'{path}' is damaged, or no {path.suffix}: {detail:.200}") from error


def _check_groups(metadata: Any, column: str, path: Path) -> None:
    """ImageError where the images of a row group are too many to be held at a time."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(n) for n in range(group.num_columns)]
        size = sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if f"{chunk.path_in_schema}.".startswith(f"{column}.")
        )
        if size > MAX_GROUP:
            raise ImageError(
                f"'{path}' has a row group of {size / 2**30:.1f} GiB, which is read at once; "
                f"allowed: {MAX_GROUP / 2**30:.0f} GiB: write it with row_group_size=100."
            )


def _cell(path: Path, state: State, column: str, row: int) -> Any:
    if path.suffix.lower() == ".arrow":
        return _mapped(path, state, os.getpid()).column(column)[row].as_py()
    starts = _opened_parquet(path, state, os.getpid())[1]
    group = bisect_right(starts, row) - 1
    return _group(path, state, os.getpid(), column, group)[row - starts[group]].as_py()


@lru_cache(64)
def _mapped(path: Path, state: State, process: int) -> pa.Table:
    """An arrow file, of either of its two formats, mapped into memory: nothing is copied."""
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:  # `datasets` writes the streaming format
        source.seek(0)
        return pa.ipc.open_stream(source).read_all()


@lru_cache(64)
def _opened_parquet(path: Path, state: State, process: int) -> tuple[pq.ParquetFile, list[int]]:
    """A parquet file of this process and the first row of each row group."""
    file, starts = pq.ParquetFile(path), [0]
    for group in range(file.num_row_groups - 1):
        starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
    return file, starts


@lru_cache(KEPT_GROUPS)
def _group(path: Path, state: State, process: int, column: str, group: int) -> pa.ChunkedArray:
    file = _opened_parquet(path, state, process)[0]
    return file.read_row_group(group, columns=[column], use_threads=False).column(column)
