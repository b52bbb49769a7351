"""Image sources: a folder, archive, table, data set or several -> their images, without any label.

`open_images` lists a source and decodes nothing; `ImageFolder.index` also finds out which of its
images can be used. What a source may be stands in docs/images.md.
"""

from __future__ import annotations

import json
import os
import random
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import ImageError
from ..files import append_text
from . import examine
from .decode import KEPT_SIDES, decode, decode_error, image_size
from .found_files import find_files as find_files
from .mixture import Mixture
from .open_source import Listed, Report, Sources, is_folder, open_source, parse_sources
from .stores import State

REPLACED = "it was replaced after it was indexed"
DECODE_AT_INDEX = 2_000  # sources of up to this many images are decoded in full when indexed
MEASURED = 2_000  # images whose sizes stand for those of a source


@dataclass
class ImageFolder(Listed):
    """Usable images: `ids` (posix paths from `root`, sorted); `skipped` (place: reason) can grow.

    states: of files when they were indexed: features and captions of an image are kept by its id,
    so one that has been replaced is not used. listing: the file in which `skip` lists. facts: of
    `compared`, sorted ids, for the search of duplicates. A subset is `replace(images, ids=…)`.
    """

    skipped: dict[str, str]
    states: dict[str, State] = field(default_factory=dict)
    listing: Path | None = None
    compared: Sequence[str] = ()
    facts: np.ndarray | None = None

    @classmethod
    def index(
        cls,
        source: Sources,
        limit: int | None = None,
        seed: int = 0,
        decoded: Path | None = None,
        report: Report = lambda sentence: None,
    ) -> ImageFolder:
        """Open a source and keep what can be used, or `limit` random images of it; ImageError.

        decoded: the images get facts, for `content_split`; this file keeps them, and the images in
        it are not decoded again. Several sources are thinned to their weights.
        """
        if limit is not None and limit < 1:
            raise ImageError(f"limit must be at least 1, got {limit}.")
        images = open_images(source, report)
        store, full = images.store, len(images.ids) <= DECODE_AT_INDEX
        names = store.in_order(images.ids) if store else images.ids
        reader = examine.Source(images.data, images.state, bool(store and store.in_rows))
        facts, problems = None, dict[str, str]()
        if decoded:
            if not full and not decoded.is_file():
                report(f"{len(names)} images are read and hashed, which later starts need not do")
            facts, problems = examine.facts(reader, names, full, decoded)
        else:
            problems = examine.problems(reader, names, full)
        skipped = {images.place(i): why for i, why in problems.items()}
        kept = sorted((i, n) for n, i in enumerate(names) if i not in problems)
        if not kept:
            raise _no_image(images, skipped)
        good = [image_id for image_id, _ in kept]
        if facts is not None:
            images = replace(images, compared=good, facts=facts[[n for _, n in kept]])
        if isinstance(store, Mixture) and decoded:
            good = store.weighted(good, images.facts_of(good)["content"])
        ids = sorted(random.Random(seed).sample(good, min(limit or len(good), len(good))))
        of_files = store is None or isinstance(store, Mixture)
        states = {i: images.state(i) for i in ids} if of_files else {}
        return replace(images, ids=ids, skipped=skipped, states=states)

    @property
    def paths(self) -> list[Path]:
        """The file of each id, in the order of `ids`, where all are files below `root`."""
        return [self.root / image_id for image_id in self.ids]

    def load(self, image_id: str) -> Image.Image:
        """Decode one image to a new 8-bit RGB image, upright, on white; ImageError if it fails."""
        try:
            image = decode(self.data(image_id))
            if self.changed(image_id):  # while it was read, too
                raise ImageError(REPLACED)
            return image
        except ImageError as error:
            raise ImageError(f"Cannot use image '{self.place(image_id)}': {error}.") from error

    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of each image, read from its header, not turned by EXIF; ImageError."""
        with ThreadPool(1 if self.store and self.store.in_rows else None) as pool:
            return pool.map(lambda i: image_size(self.data(i)), self.ids, chunksize=16)

    def sample_sizes(self, seed: int) -> list[tuple[int, int]]:
        """`sizes` of all, or of MEASURED random images: a million are not opened once more."""
        count = min(MEASURED, len(self.ids))
        return replace(self, ids=sorted(random.Random(seed).sample(self.ids, count))).sizes()

    def identity(self, image_id: str) -> str:
        """32 hexadecimal digits for an image's place and state: path, size, time of change."""
        if self.store:
            return _digits(f"{self.address} {image_id} {self.store.state(image_id)}")
        path = self.root / image_id
        try:
            stat = path.stat()
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
            raise ImageError(f"Cannot use image '{path}': {reason}.") from error
        return _digits(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}")

    def changed(self, image_id: str) -> bool:
        """Whether its file is not what was indexed: deleted, truncated, replaced."""
        now = self.state(image_id)
        return self.states.get(image_id, now) != now or super().changed(image_id)

    def lost(self, image_id: str) -> bool:
        """`changed`; an image that is so is skipped and listed."""
        if changed := self.changed(image_id):
            file = self.file(image_id)
            reason = decode_error(file, full_decode=True) if file else None
            self.skip(image_id, reason or REPLACED)
        return changed

    def skip(self, image_id: str, reason: str) -> None:
        """Leave an image out from here on, and list it."""
        self.skipped[self.place(image_id)] = reason
        if self.listing is not None:
            self.write_skipped(self.listing)

    def write_skipped(self, path: Path) -> None:
        """Add one JSON line {"path", "reason"} per skipped file that is not listed there."""
        listed = {*path.read_text().splitlines()} if path.is_file() else set()
        lines = [json.dumps({"path": p, "reason": r}) for p, r in self.skipped.items()]
        if new := [f"{line}\n" for line in lines if line not in listed]:
            append_text(path, "".join(new))

    def facts_of(self, ids: Sequence[str]) -> np.ndarray:
        """The facts of these images, (N,) of `duplicates.FACTS`."""
        assert self.facts is not None, "indexed without `decoded`"
        facts: np.ndarray = self.facts[[bisect_left(self.compared, i) for i in ids]]
        return facts


def open_images(source: Sources, report: Report = lambda sentence: None) -> ImageFolder:
    """The images of a source, in its order of names, listed and not decoded; ImageError.

    source: a folder, glob, image, text file of paths (.txt), zip, tar, shards, parquet or arrow
    file, `hf:` or `stream:` address, or a mapping of several to their weights (docs/images.md).
    `ids` names the images and `load(id)` decodes one, so `LazyImages(images.load, images.ids)` is
    all of them, lazily; `file(id)` is the file on disk that an image is, None for one in an
    archive, table or data set. Whether one can be decoded only `load` finds out. `report` gets a
    sentence before something is downloaded.
    """
    listed = open_source(source, report)
    return ImageFolder(listed.source, listed.root, listed.ids, {}, store=listed.store)


def reopen_images(address: str, ids: Sequence[str]) -> ImageFolder:
    """The images with these ids of a source that was indexed before, by its `address`.

    Files are not looked for: one that is gone fails when it is loaded. ImageError where an archive,
    table or data set cannot be opened.
    """
    if is_folder(address):
        return ImageFolder(address, Path(address), [*ids], {})
    return replace(_opened(address), ids=[*ids], skipped={})


@lru_cache(8)
def _opened(address: str) -> ImageFolder:
    return open_images(parse_sources(address))


def _no_image(images: ImageFolder, skipped: dict[str, str]) -> ImageError:
    reasons = [re.sub(r"\d+", "N", why) for why in skipped.values()] or ["no image suffix"]
    counts = f"{len(images.ids)} image files found, {len(skipped)} skipped"
    reason = Counter(reasons).most_common(1)[0][0]
    where = images.source
    return ImageError(f"No usable image in '{where}': {counts}, mostly because: {reason}.")


def _digits(facts: str) -> str:
    return blake2b(os.fsencode(f"{facts} {KEPT_SIDES}"), digest_size=16).hexdigest()
