"""Archives: the images in zip and tar files, WebDataset's shards among them, read in place.

Python's own tarfile and zipfile read the directory; a member is read where it lies, so nothing is
unpacked. A tar has no directory: its headers are read through, some 50,000 a second, and of each
member only the name, the place and the size are kept.
"""

from __future__ import annotations

import os
import stat
import tarfile
import zipfile
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path, PurePosixPath
from threading import Lock

import numpy as np

from ..errors import ImageError
from .found_files import find_shards, is_image
from .stores import State, check_bytes, file_state

SUFFIXES = (".zip", ".tar")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tar.xz", ".txz", ".tar.zst")
BLOCK = 512  # bytes of a tar's header
# (name, offset of the data in a tar or of the header in a zip, bytes, "" or why it is refused)
Member = tuple[str, int, int, str]
_zip_locks: dict[int, Lock] = {}  # by process: one that a fork copies may be held for ever


class Archives:
    """Images in archives; a name is `ARCHIVE/MEMBER`. Of two members of a name the last counts."""

    in_rows = False

    def __init__(self, pattern: str) -> None:
        """pattern: one archive, a glob or numbered shards. ImageError names what is refused."""
        folder, self.archives = find_shards(pattern)
        self.root = folder
        self.source = str(Path(pattern).expanduser().absolute())
        self.dropped = Counter[str]()
        self.states = [file_state(path) for path in self.archives]
        names, places = list[str](), array("q")
        for number, archive in enumerate(self.archives):
            prefix = archive.absolute().relative_to(folder).as_posix()
            count = len(names)
            for name, offset, size, refused in _members(archive):
                if refused:
                    what = "archives that hold such a member are refused"
                    raise ImageError(f"'{archive}' holds {name!r:.200}, {refused}: {what}.")
                if is_image(Path(name)):
                    names.append(f"{prefix}/{name}")
                    places.extend((number, offset, size))
                else:
                    self.dropped[Path(name).suffix.lower() or "files without a suffix"] += 1
            if len(names) == count:
                raise ImageError(f"'{archive}' holds no image: no member has an image's suffix.")
        self._keep(names, np.array(places, np.int64).reshape(-1, 3))

    def _keep(self, names: list[str], places: np.ndarray) -> None:
        """Names sorted, each once, and beside them archive, offset and bytes (N, 3)."""
        order = sorted(range(len(names)), key=names.__getitem__)  # stable: the last stays last
        kept = [i for i, j in pairwise(order) if names[i] != names[j]] + order[-1:]
        self._names, self._places = [names[i] for i in kept], places[kept]

    def names(self) -> list[str]:
        return self._names

    def in_order(self, names: list[str]) -> list[str]:
        rows = self._places[[self._row(name) for name in names]]
        return [names[i] for i in np.lexsort((rows[:, 1], rows[:, 0]))]

    def state(self, name: str) -> State:
        return self.states[self._places[self._row(name), 0]]

    def changed(self, name: str) -> bool:
        number = self._places[self._row(name), 0]
        return file_state(self.archives[number]) != self.states[number]

    def data(self, name: str) -> bytes:
        number, offset, size = (int(n) for n in self._places[self._row(name)])
        if reason := check_bytes(size) or _bad_name(name):
            raise ImageError(reason)
        archive = self.archives[number]
        if archive.suffix.lower() == ".zip":
            prefix = archive.absolute().relative_to(self.root).as_posix()
            return _zip_member(archive, self.states[number], name[len(prefix) + 1 :], size)
        try:
            with archive.open("rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise ImageError(f"cannot be read: {error.strerror}") from error
        if len(content) < size:
            raise ImageError("cannot be read: the archive is cut off")
        return content

    def _row(self, name: str) -> int:
        row = bisect_left(self._names, name)
        if row == len(self._names) or self._names[row] != name:
            raise ImageError("cannot be read: no such member")
        return row


def refuse_compressed(source: str) -> None:
    """ImageError for a compressed tar, in which no member can be read without all before it."""
    if source.lower().endswith(COMPRESSED):
        raise ImageError(
            f"'{source}' is a compressed tar, whose images cannot be read one by one; allowed: "
            "zip, or a tar that is not compressed (gunzip, unxz)."
        )


def _members(archive: Path) -> Iterator[Member]:
    """The members of an archive but its folders; ImageError where it cannot be read to its end."""
    try:
        yield from (_of_zip if archive.suffix.lower() == ".zip" else _of_tar)(archive)
    except OSError as error:
        raise ImageError(f"'{archive}' cannot be read: {error.strerror}.") from error
    except (tarfile.TarError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"'{archive}' is damaged, or no {archive.suffix}: {error}.") from error


def _of_tar(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive, "r:") as tar:
        while (member := tar.next()) is not None:
            # a TarInfo takes over a kilobyte: a million are not kept
            tar.members.clear()  # type: ignore[attr-defined]
            if not member.isdir():
                what = "" if member.isreg() and not member.issparse() else "no plain file"
                what = "a link" if member.issym() or member.islnk() else what
                reason = what or _bad_path(member.name)
                yield member.name, member.offset_data, member.size, reason
        end = tar.offset  # tarfile takes a damaged header for the end
    with archive.open("rb") as file:
        file.seek(end)
        if any(file.read(BLOCK)):
            raise ImageError(f"'{archive}' is damaged: byte {end} begins no member.")


def _of_zip(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            if not member.is_dir():
                link = stat.S_ISLNK(member.external_attr >> 16)
                reason = "a link" if link else _bad_path(member.filename)
                reason = reason or ("encrypted" if member.flag_bits & 1 else "")
                yield member.filename, member.header_offset, member.file_size, reason


def _bad_name(name: str) -> str:
    """Why a member of this name cannot be used; "": it can. It becomes an Arrow string."""
    return "its name is not UTF-8" if name != name.encode(errors="ignore").decode() else ""


def _bad_path(name: str) -> str:
    """Why a member's name is refused, "" where it lies below its archive."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if parts[:1] == ("/",) or (parts and parts[0][1:2] == ":"):
        return "an absolute path"
    return "a path with '..'" if ".." in parts else ""


def _zip_member(archive: Path, state: State, name: str, size: int) -> bytes:
    try:
        lock = _zip_locks.setdefault(os.getpid(), Lock())  # zipfile counts its readers without
        with lock, _opened_zip(archive, state, os.getpid()).open(name) as member:
            content = member.read(size + 1)
    except Exception as error:  # zipfile's, zlib's, lzma's and bz2's own on damaged bytes
        raise ImageError(f"cannot be read: {error}") from error
    if len(content) != size:
        raise ImageError("cannot be read: not as many bytes as the archive's directory says")
    return content


@lru_cache(8)
def _opened_zip(archive: Path, state: State, process: int) -> zipfile.ZipFile:
    """An open zip of this process: one that a fork shares would be read from a moved place."""
    return zipfile.ZipFile(archive)
