"""Data sets of the Hugging Face hub, whole or as a stream, and remote shards, through `datasets`.

`hf:USER/NAME[SPLIT]` is downloaded by `datasets` into its own cache and mapped into memory.
`stream:USER/NAME[SPLIT:COUNT]` is read from its beginning, shards and a buffer shuffled alike on
every machine, until COUNT images have come: no length is needed and no more is downloaded. They
stay in one arrow file of data/cache/streams, for a training reads an image many times, and a
resumed one has to read the same. A folder with a data set may stand for USER/NAME, as may
`https://…/{000..099}.tar` or `.parquet` in a stream; `USER/NAME/CONFIG` names a configuration.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa

from ..errors import Fault, ImageError, masked
from ..files import in_turn, write_atomic
from .found_files import expand_braces, find_shards
from .row_paths import checked_path
from .stores import MAX_BYTES, State
from .tables import Tables, cell_bytes, image_column

FOLDER = Path("data/cache/streams")
FORM = re.compile(
    r"(?P<kind>hf|stream):(?P<name>[^\[\]#]+)"
    r"(\[(?P<split>[^\[\]:]+)(:(?P<count>[1-9]\d*))?\])?(#(?P<column>.+))?"
)
ALLOWED = "hf:USER/NAME[SPLIT] or stream:USER/NAME[SPLIT:COUNT], a column of it as …#COLUMN"
COUNT = 10_000  # images of a stream where its source names no number
BUFFER = 1_000  # encoded images that a stream is shuffled in
BATCH = 64  # images that are written together
BUILDERS = {".tar": "webdataset", ".parquet": "parquet", ".arrow": "arrow"}
DROPPED = b"dropped"  # in the metadata of a kept stream: the columns that were left behind
Report = Callable[[str], object]


@dataclass(frozen=True)
class Address:
    """The parts of a source that begins with hf: or stream:; column: "" where none is named."""

    text: str
    streamed: bool
    name: str
    split: str
    count: int
    column: str

    @classmethod
    def of_text(cls, text: str) -> Address:
        """ImageError where the text has not this form."""
        match = FORM.fullmatch(text)
        if not match or (match["kind"] == "hf" and match["count"]):
            raise ImageError(f"'{masked(text)}' is no address of a data set; allowed: {ALLOWED}.")
        streamed, name = match["kind"] == "stream", match["name"].strip()
        folder = Path(name).expanduser()
        local = folder.exists() or name[:1] in "./~"
        if local and not folder.exists():
            find_shards(name)  # raises where one is missing
        return cls(
            text,
            streamed,
            str(folder.absolute()) if local else name,
            match["split"] or "train",
            int(match["count"] or COUNT),
            match["column"] or "",
        )

    @property
    def absolute(self) -> str:
        """The address as it holds in any working directory, and with its column."""
        kind, count = ("stream", f":{self.count}") if self.streamed else ("hf", "")
        column = f"#{self.column}" if self.column else ""
        return f"{kind}:{self.name}[{self.split}{count}]{column}"

    def load(self) -> Any:
        """The Dataset or IterableDataset; ImageError in one sentence where it cannot be opened."""
        suffix = Path(self.name).suffix.lower()
        kwargs: dict[str, Any] = {"split": self.split, "streaming": self.streamed}
        with _opening(self.text):
            if suffix in BUILDERS and not Path(self.name).is_dir():
                files = expand_braces(self.name)
                return datasets.load_dataset(BUILDERS[suffix], data_files=files, **kwargs)
            repository, config = self.name, None
            if self.name.count("/") == 2 and not Path(self.name).is_dir():
                repository, _, config = self.name.rpartition("/")
            return datasets.load_dataset(repository, config, **kwargs)


class HubRows:
    """The images of a data set that `datasets` has downloaded; a name is the number of its row."""

    in_rows = False

    def __init__(self, address: Address) -> None:
        rows = address.load()
        column, others = _image_column(rows, address)
        self.dropped = Counter({f"column {name}": len(rows) for name in others})
        self._state = (len(rows), int(rows._fingerprint, 16))  # of the files it was made from
        self.rows, self.column, self.source = _encoded(rows, column), column, address.absolute
        self.root, self.root_of_files = Path(address.absolute), address.name

    def names(self) -> list[str]:
        return [f"{row:08d}" for row in range(len(self.rows))]

    def in_order(self, names: list[str]) -> list[str]:
        return sorted(names)

    def state(self, name: str) -> State:
        return self._state

    def changed(self, name: str) -> bool:
        return False  # `datasets` names the files of its cache by what is in them

    def data(self, name: str) -> Path | bytes:
        cell = self.rows[int(name)][self.column]
        if isinstance(cell, dict) and cell.get("bytes") is None and cell.get("path"):
            return Path(checked_path(cell["path"], self.root_of_files))
        return cell_bytes(cell)


class StreamRows:
    """The first images of a stream, kept in one file; a name is the number of its row."""

    in_rows = True

    def __init__(self, address: Address, report: Report) -> None:
        self.source, self.root = address.absolute, Path(address.absolute)
        key = blake2b(self.source.encode(), digest_size=8).hexdigest()
        path = (FOLDER / f"{key}.arrow").absolute()
        if not path.is_file():
            with in_turn(path):  # of several processes one downloads, and the others wait
                if not path.is_file():
                    report(f"reading the first {address.count} images of {masked(address.text)}")
                    _write(path, address)
        self.table = Tables(str(path), "image")
        with pa.memory_map(str(path)) as file:
            names = json.loads((pa.ipc.open_stream(file).schema.metadata or {})[DROPPED])
        self.dropped = Counter({f"column {name}": self.table.starts[-1] for name in names})
        self._file = path.name

    def names(self) -> list[str]:
        return [f"{row:08d}" for row in range(self.table.starts[-1])]

    def in_order(self, names: list[str]) -> list[str]:
        return sorted(names)

    def state(self, name: str) -> State:
        return self.table.states[0]

    def changed(self, name: str) -> bool:
        return self.table.changed(f"{self._file}/{name}")

    def data(self, name: str) -> bytes:
        return self.table.data(f"{self._file}/{name}")


def open_rows(text: str, report: Report) -> HubRows | StreamRows:
    """The images of an hf: or stream: address; ImageError."""
    address = Address.of_text(text)
    return StreamRows(address, report) if address.streamed else HubRows(address)


def _write(path: Path, address: Address) -> None:
    """Keep the first `address.count` images of a stream as they are encoded; all or no file."""
    stream = address.load()
    column, others = _image_column(stream, address)
    stream = _encoded(stream, column).shuffle(seed=0, buffer_size=BUFFER).take(address.count)
    metadata = {DROPPED: json.dumps(others).encode()}
    schema = pa.schema([pa.field("image", pa.large_binary())], metadata)

    def write(part: Path) -> None:
        with pa.ipc.new_stream(str(part), schema) as file:
            contents = _contents(stream, column, address.name)
            while images := [*islice(contents, BATCH)]:
                file.write_batch(pa.record_batch([pa.array(images, pa.large_binary())], schema))

    with _opening(address.text):
        write_atomic(path, write)


def _contents(stream: Any, column: str, folder: str) -> Iterator[bytes | None]:
    """The encoded image of each row; None where a row has none, which then is skipped by name."""
    for row in stream:
        cell = row[column]
        if isinstance(cell, dict) and cell.get("bytes") is None and cell.get("path"):
            yield _fetched(cell["path"], folder)
        else:
            yield cell.get("bytes") if isinstance(cell, dict) else cell


def _fetched(path: str, folder: str) -> bytes | None:
    try:
        with fsspec.open(checked_path(path, folder), "rb") as file:
            content: bytes = file.read(MAX_BYTES + 1)
            return content
    except ImageError:
        return None


def _image_column(rows: Any, address: Address) -> tuple[str, list[str]]:
    """The column of images and the others."""
    if rows.features is None:
        raise ImageError(f"'{masked(address.text)}' does not say what its columns hold.")
    schema = rows.features.arrow_schema
    column = image_column(schema, address.column, masked(address.text))
    return column, [name for name in schema.names if name != column]


def _encoded(rows: Any, column: str) -> Any:
    """The rows with this column alone, whose images are not decoded."""
    rows = rows.select_columns([column])
    if isinstance(rows.features[column], datasets.Image):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


@contextmanager
def _opening(text: str) -> Iterator[None]:
    """Inside, what `datasets` raises becomes one sentence."""
    try:
        yield
    except (ImageError, Fault):
        raise
    except Exception as error:  # it raises almost anything, of a dozen libraries
        lines = str(error).splitlines() or [type(error).__name__]
        reason = masked(" ".join(lines[0].split())).rstrip(".")
        raise ImageError(f"'{masked(text)}' cannot be opened: {reason:.300}.") from error
