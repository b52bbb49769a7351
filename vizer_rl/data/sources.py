"""Image sources: a folder, glob pattern or file -> its usable image files, without any label."""

from __future__ import annotations

import json
import os
import random
import re
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from multiprocessing.pool import ThreadPool
from pathlib import Path

from PIL import Image

from rewards.lib import disk_cache

from ..errors import ImageError, path_not_found
from ..files import append_text
from .decode import KEPT_SIDES, SUFFIXES, decode, decode_error, image_size

REPLACED = "it was replaced after it was indexed"
State = tuple[int, int] | None
DECODE_AT_INDEX = 2_000  # sources of up to this many files are decoded in full when indexed


@dataclass
class ImageFolder:
    """Usable images: `ids` (posix paths from `root`, sorted); `skipped` (file: reason) can grow.

    states: of files when they were indexed: features and captions of an image are kept by its id,
    so one that has been replaced is not used. listing: the file in which `skip` lists.
    """

    source: str
    root: Path
    ids: list[str]
    skipped: dict[str, str]
    states: dict[str, State] = field(default_factory=dict)
    listing: Path | None = None

    @classmethod
    def index(
        cls,
        source: str | Path,
        limit: int | None = None,
        seed: int = 0,
        decoded: Path | None = None,
    ) -> ImageFolder:
        """Index a folder, glob pattern or file, or `limit` random images of it; else ImageError.

        decoded: lists the files that have been decoded in full, which then are not decoded again.
        """
        if limit is not None and limit < 1:
            raise ImageError(f"limit must be at least 1, got {limit}.")
        root, files = find_files(source)
        full = len(files) <= DECODE_AT_INDEX
        text = decoded.read_text(errors="replace") if decoded and decoded.is_file() else ""
        before = frozenset(text.split())
        check = partial(_problem, full_decode=full, decoded=before)
        with warnings.catch_warnings(), ThreadPool() as pool:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            problems = list(pool.imap(check, files, chunksize=4))
        skipped = {str(p): why for p, why in zip(files, problems, strict=True) if why}
        good = sorted(p.relative_to(root).as_posix() for p in files if str(p) not in skipped)
        if not good:
            reasons = [re.sub(r"\d+", "N", why) for why in skipped.values()] or ["no image suffix"]
            counts = f"{len(files)} image files found, {len(skipped)} skipped"
            reason = Counter(reasons).most_common(1)[0][0]
            raise ImageError(f"No usable image in '{source}': {counts}, mostly because: {reason}.")
        if decoded and full:
            names = {_name(root / image_id) for image_id in good}
            lines = "".join(f"{name}\n" for name in sorted({*before, *names}))
            with disk_cache.tolerated(decoded.parent):
                disk_cache.replace(decoded, lines.encode())
        ids = sorted(random.Random(seed).sample(good, min(limit or len(good), len(good))))
        return cls(str(source), root, ids, skipped, {i: _state(root / i) for i in ids})

    @property
    def paths(self) -> list[Path]:
        """The file of each id, in the order of `ids`."""
        return [self.root / image_id for image_id in self.ids]

    def load(self, image_id: str) -> Image.Image:
        """Decode one image to a new 8-bit RGB image, upright, on white; ImageError if it fails."""
        try:
            image = decode(self.root / image_id)
            if self.changed(image_id):  # while it was read, too
                raise ImageError(REPLACED)
            return image
        except ImageError as error:
            raise ImageError(f"Cannot use image '{self.root / image_id}': {error}.") from error

    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of each image, read from its header, not turned by EXIF; ImageError."""
        with ThreadPool() as pool:
            return pool.map(image_size, self.paths, chunksize=16)

    def identity(self, image_id: str) -> str:
        """32 hexadecimal digits for an image's file and state: path, size, time of change."""
        path = self.root / image_id
        try:
            return _name(path)
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
            raise ImageError(f"Cannot use image '{path}': {reason}.") from error

    def changed(self, image_id: str) -> bool:
        """Whether its file is not what was indexed: deleted, truncated, replaced."""
        now = _state(self.root / image_id)
        return self.states.get(image_id, now) != now

    def lost(self, image_id: str) -> bool:
        """`changed`; an image that is so is skipped and listed."""
        if changed := self.changed(image_id):
            path = self.root / image_id
            self.skip(image_id, decode_error(path, full_decode=True) or REPLACED)
        return changed

    def skip(self, image_id: str, reason: str) -> None:
        """Leave an image out from here on, and list it."""
        self.skipped[str(self.root / image_id)] = reason
        if self.listing is not None:
            self.write_skipped(self.listing)

    def write_skipped(self, path: Path) -> None:
        """Add one JSON line {"path", "reason"} per skipped file that is not listed there."""
        listed = {*path.read_text().splitlines()} if path.is_file() else set()
        lines = [json.dumps({"path": p, "reason": r}) for p, r in self.skipped.items()]
        if new := [f"{line}\n" for line in lines if line not in listed]:
            append_text(path, "".join(new))


def _state(path: Path) -> State:
    """Size and time of change of a file; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _name(path: Path) -> str:
    """32 hexadecimal digits for a file, its state and how it is decoded; OSError."""
    stat = path.stat()
    facts = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {KEPT_SIDES}"
    return blake2b(os.fsencode(facts), digest_size=16).hexdigest()


def _problem(path: Path, full_decode: bool, decoded: frozenset[str]) -> str | None:
    """Why a file cannot be used; None where it can, or could when it was as it is now."""
    if decoded and path.is_file() and _name(path) in decoded:
        return None
    return decode_error(path, full_decode)


def find_files(source: str | Path) -> tuple[Path, list[Path]]:
    """The root of a source and its image files (by suffix, unless it is a single file), sorted."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path, _walk(path)
    if path.exists():
        return path.parent, [path]
    fixed = next((i for i, p in enumerate(path.parts) if set(p) & set("*?[")), len(path.parts))
    root = Path(*path.parts[:fixed])
    if not root.is_dir():
        raise ImageError(f"{path_not_found(source)}.")
    # Like a shell, `**` beside other characters is `*`, and as a folder it enters no link.
    rest = [p if p == "**" else p.replace("**", "*") for p in path.parts[fixed:]]
    matches = set(root.glob("/".join(rest + ["*"] * (rest[-1] == "**"))))
    return root, sorted(f for f in matches if not f.is_dir() and _is_image(f.relative_to(root)))


def _walk(root: Path) -> list[Path]:
    """The image files below a folder, links followed and each real folder entered once, sorted."""
    files, visited = list[Path](), set[str]()
    # A folder that cannot be listed stands among the files: it is then skipped with a reason.
    walk = os.walk(root, onerror=lambda e: files.append(Path(e.filename)), followlinks=True)
    for folder, subfolders, names in walk:
        new = os.path.realpath(folder) not in visited
        visited.add(os.path.realpath(folder))
        subfolders[:] = sorted(name for name in subfolders if new and not name.startswith("."))
        files += [Path(folder, name) for name in names if new and _is_image(Path(name))]
    return sorted(files)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not any(p.startswith(".") for p in path.parts)
