"""Image sources -> rows {image_id, image, prompt}: only pixels go in, so no label can."""

from __future__ import annotations

import json
import os
import random
import re
import warnings
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache, partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 178_956_970  # holds even where PIL.Image.MAX_IMAGE_PIXELS was raised or switched off
DECODE_AT_INDEX = 2_000  # sources of up to this many files are decoded in full when indexed
CACHED_IMAGES = 32  # TRL asks G times in a row; 32 photos of 12 megapixels take 1.5 GiB
NOT_RASTER = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"}  # EPS runs programs
SUFFIXES = {end for end, name in Image.registered_extensions().items() if name not in NOT_RASTER}
FORMATS = tuple(name for name in Image.ID if name not in NOT_RASTER)


class ImageError(ValueError):
    """An image or a whole source that cannot be used; the message is one sentence."""


@dataclass
class ImageFolder:
    """Usable images: `ids` (posix paths from `root`, sorted); `skipped` (file: reason) can grow."""

    source: str
    root: Path
    ids: list[str]
    skipped: dict[str, str]

    @classmethod
    def index(cls, source: str | Path, limit: int | None = None, seed: int = 0) -> ImageFolder:
        """Index a folder, glob pattern or file, or `limit` random images of it; else ImageError."""
        if limit is not None and limit < 1:
            raise ImageError(f"limit must be at least 1, got {limit}.")
        root, files = find_files(source)
        check = partial(_problem, whole=len(files) <= DECODE_AT_INDEX)
        with warnings.catch_warnings(), ThreadPool() as pool:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            problems = list(pool.imap(check, files, chunksize=4))
        skipped = {str(p): why for p, why in zip(files, problems, strict=True) if why}
        good = sorted(p.relative_to(root).as_posix() for p in files if str(p) not in skipped)
        if not good:
            reasons = [re.sub(r"\d+", "N", why) for why in skipped.values()] or ["no image suffix"]
            found = f"{len(files)} image files found, {len(skipped)} skipped"
            most = Counter(reasons).most_common(1)[0][0]
            raise ImageError(f"No usable image in '{source}': {found}, mostly because: {most}.")
        ids = sorted(random.Random(seed).sample(good, min(limit or len(good), len(good))))
        return cls(str(source), root, ids, skipped)

    @property
    def paths(self) -> list[Path]:
        """The file of each id, in the order of `ids`."""
        return [self.root / image_id for image_id in self.ids]

    def load(self, image_id: str) -> Image.Image:
        """Decode one image to a new 8-bit RGB image, upright, on white; ImageError if it fails."""
        try:
            return decode(self.root / image_id)
        except ImageError as error:
            raise ImageError(f"Cannot use image '{self.root / image_id}': {error}.") from error

    def write_skipped(self, path: str | Path) -> None:
        """Write one JSON line {"path", "reason"} per skipped file, if there is any."""
        lines = [json.dumps({"path": p, "reason": r}) + "\n" for p, r in self.skipped.items()]
        if lines:
            Path(path).write_text("".join(lines), encoding="utf-8")


def rows(images: ImageFolder, prompt: Any) -> Dataset:
    """A Dataset of rows {"image_id": str, "image": RGB, "prompt": a new copy}, decoded when read.

    Rows share images: read-only. One that fails gives way to the next good one, with its own id.
    Take ids from `images.ids`: `dataset["image_id"]` would decode every image.
    """
    return Dataset.from_dict({"image_id": images.ids}).with_transform(_Rows(images, prompt))


class _Rows:
    """Image ids -> rows; in a DataLoader worker a copy, whose `skipped` the parent never sees."""

    def __init__(self, images: ImageFolder, prompt: Any) -> None:
        self.images, self.prompt = images, prompt
        self.cached_usable = lru_cache(CACHED_IMAGES)(self._first_usable)

    def __call__(self, batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        found = [self.cached_usable(image_id) for image_id in batch["image_id"]]
        ids, images = [image_id for image_id, _ in found], [image for _, image in found]
        return {"image_id": ids, "image": images, "prompt": [deepcopy(self.prompt) for _ in ids]}

    def _first_usable(self, image_id: str) -> tuple[str, Image.Image]:
        """The image or, where it will not decode, the next that does in index order, wrapping."""
        ids, skipped = self.images.ids, self.images.skipped
        start = bisect_left(ids, image_id)
        for i in range(start, start + len(ids)):
            candidate = ids[i % len(ids)]
            path = self.images.root / candidate
            if str(path) not in skipped:
                try:
                    return candidate, decode(path)
                except ImageError as error:
                    skipped[str(path)] = str(error)
        raise ImageError(f"Not one image of '{self.images.source}' can be decoded any more.")

    def __reduce__(self) -> tuple[type[_Rows], tuple[ImageFolder, Any]]:
        return _Rows, (self.images, self.prompt)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Rows:
        return self  # `datasets` deep-copies on most calls; `skipped` must stay the caller's


def decode(path: Path) -> Image.Image:
    """Decode the first frame of a file to RGB, 8 bits a channel, or raise ImageError(reason)."""
    with _opened(path) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """An open image of any Pillow mode -> new RGB: upright, on white, without metadata."""
    image.getexif()  # stays cached; without the raw copy no odd tag has to be written back
    image.info.pop("exif", None)
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):
        wide = np.asarray(image, dtype=np.uint32)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_to_8_bit(np.asarray(image, dtype=np.float64)))
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    rgb = image.convert("RGB")
    rgb.info = {}  # EXIF descriptions, PNG texts and JPEG comments may hold a caption
    return rgb


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Values (H, W) -> uint8 (H, W): as they are within 0..255, else min..max to 0..255."""
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    if low < 0 or high > 255:
        values = (values - low) * (255 / ((high - low) or 1))
    return np.asarray(np.nan_to_num(values).clip(0, 255).round(), dtype=np.uint8)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An open image; whatever goes wrong within becomes ImageError("reason (details)")."""
    try:
        str(path).encode()  # a name that is not UTF-8 cannot become an Arrow string
        if path.stat().st_size == 0:
            raise ImageError("empty file (0 bytes)")
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"more than {MAX_PIXELS} pixels ({image.width} x {image.height})")
            if min(image.size) < 2:
                raise ImageError(f"less than 2 pixels a side ({image.width} x {image.height})")
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not an image that Pillow can read") from error
    except Exception as error:  # on corrupt bytes Pillow's readers raise almost anything
        detail = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"cannot be read: {detail}") from error


def _problem(path: Path, whole: bool) -> str | None:
    """Why a file cannot be used, judged by its header or by decoding the whole of it."""
    try:
        with _opened(path) as image:
            if whole:
                to_rgb(image)
    except ImageError as error:
        return str(error)
    return None


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
        while not root.parent.is_dir():
            root = root.parent
        near = get_close_matches(root.name, os.listdir(root.parent), n=1) or ["(none alike)"]
        raise ImageError(f"'{source}' not found; nearest name in '{root.parent}': {near[0]}.")
    # Like a shell, `**` beside other characters is `*`, and as a folder it enters no link.
    rest = [p if p == "**" else p.replace("**", "*") for p in path.parts[fixed:]]
    found = set(root.glob("/".join(rest + ["*"] * (rest[-1] == "**"))))
    return root, sorted(f for f in found if not f.is_dir() and _is_image(f.relative_to(root)))


def _walk(root: Path) -> list[Path]:
    """The image files below a folder, links followed and each real folder entered once, sorted."""
    files, seen = list[Path](), set[str]()
    # A folder that cannot be listed stands among the files: it is then skipped with a reason.
    walk = os.walk(root, onerror=lambda e: files.append(Path(e.filename)), followlinks=True)
    for folder, subfolders, names in walk:
        new = os.path.realpath(folder) not in seen
        seen.add(os.path.realpath(folder))
        subfolders[:] = sorted(name for name in subfolders if new and not name.startswith("."))
        files += [Path(folder, name) for name in names if new and _is_image(Path(name))]
    return sorted(files)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not any(p.startswith(".") for p in path.parts)
