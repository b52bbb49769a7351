"""Opening a source: what kind it is, and the names of its images, before any is decoded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ImageError
from . import archives
from .decode import Data
from .found_files import find_files, find_shards, has_image, walk
from .mixture import Mixture
from .stores import State, Store, file_state

TABLES = (".parquet", ".arrow")
Sources = str | Path | Mapping[str, float]  # one source, or several with their weights
Report = Callable[[str], object]


@dataclass
class Listed:
    """The images of a source: `ids` are posix paths from `root`, sorted.

    store: of images that are no files below `root`.
    """

    source: str
    root: Path
    ids: list[str]
    store: Store | None = field(default=None, kw_only=True)

    @property
    def address(self) -> str:
        """What opens these images again from any working directory, with `reopen_images`."""
        return self.store.source if self.store else str(self.root.resolve())

    @property
    def dropped(self) -> Counter[str]:
        """What stands beside the images in a table or archive and is not read, and how many."""
        return self.store.dropped if self.store else Counter()

    def data(self, image_id: str) -> Data:
        """The file of an image, or its encoded bytes where it is no file; ImageError(reason)."""
        return self.store.data(image_id) if self.store else self.root / image_id

    def file(self, image_id: str) -> Path | None:
        """The file on disk that an image is, absolute; None: a member, a row or a download."""
        if isinstance(self.store, Mixture):
            return self.store.file(image_id)
        return None if self.store else (self.root / image_id).absolute()

    def place(self, image_id: str) -> str:
        """Where an image lies, for a sentence and for `skipped`."""
        return str(self.root / image_id)

    def state(self, image_id: str) -> State:
        """State of its file: as it is now; of a store's, as it was when that was opened."""
        return self.store.state(image_id) if self.store else file_state(f"{self.root}/{image_id}")

    def changed(self, image_id: str) -> bool:
        """Whether the archive or table that holds it is another one now."""
        return self.store.changed(image_id) if self.store else False


def open_source(source: Sources, report: Report) -> Listed:
    """The images of a source, in the order of their names; ImageError."""
    if isinstance(source, Mapping):
        return _stored(Mixture([open_source(part, report) for part in source], source))
    text = str(source)
    if text.startswith(("hf:", "stream:")):
        from . import streams

        return _stored(streams.open_rows(text, report))
    path, kind, column = kind_of(text)
    if kind in TABLES:
        from .tables import Tables

        return _stored(Tables(path, column))
    if kind in archives.SUFFIXES:
        return _stored(archives.Archives(path))
    folder = Path(text).expanduser()
    if folder.is_dir():
        return Listed(text, folder, walk(folder))
    root, files = find_files(source)
    return Listed(text, root, sorted(f.relative_to(root).as_posix() for f in files))


def check_source(source: str | Path) -> str:
    """What is wrong with one source as far as that is clear without reading it; "": nothing."""
    try:
        text = str(source)
        if text.startswith(("hf:", "stream:")):
            from . import streams

            streams.Address.of_text(text)
            return ""
        path, kind, column = kind_of(text)
        folder = Path(text).expanduser()
        if kind in TABLES:
            from .tables import Tables

            Tables(path, column)
        elif kind:
            find_shards(path)
        elif not (has_image(folder) if folder.is_dir() else find_files(source)[1]):
            return f"'{source}' holds no file with the suffix of an image{_instead(source)}"
    except ImageError as error:
        return str(error)
    return ""


def is_remote(source: Sources) -> bool:
    """Whether any image may have to be downloaded before it can be listed."""
    parts = source if isinstance(source, Mapping) else [source]
    return any(str(part).startswith(("hf:", "stream:")) for part in parts)


def parse_sources(text: str) -> Sources:
    """A source as it was written in JSON, if it is several, else the text."""
    return json.loads(text) if text.startswith('{"') else text


def is_folder(address: str) -> bool:
    """Whether an address is that of files below a folder, which need not be there any more."""
    if Path(address).is_dir():
        return True
    return not (address.startswith(("{", "hf:", "stream:")) or kind_of(address)[1])


def _stored(store: Store) -> Listed:
    return Listed(store.source, store.root, store.names(), store=store)


def kind_of(text: str) -> tuple[str, str, str]:
    """A source's path, the suffix by which it holds images or "", and the column it names."""
    path, _, column = text.rpartition("#")
    if not path.lower().endswith(TABLES):
        path, column = text, ""
    if Path(path).expanduser().is_dir():
        return path, "", ""
    archives.refuse_compressed(path)
    suffix = Path(path).suffix.lower()
    return path, suffix if suffix in (*archives.SUFFIXES, *TABLES) else "", column


def _instead(source: str | Path) -> str:
    """What a folder holds that is a source itself."""
    folder = Path(source).expanduser()
    suffixes = Counter(p.suffix.lower() for p in folder.iterdir()) if folder.is_dir() else {}
    there = [s for s in (*archives.SUFFIXES, *TABLES) if s in suffixes]
    return f"; its {there[0]} files are read as '{folder}/*{there[0]}'" if there else ""
