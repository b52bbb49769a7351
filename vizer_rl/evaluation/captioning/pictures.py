"""Images to caption: of each its name below the root of all sources, and how it is decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from ...data.sources import ImageFolder, open_images
from ...errors import ImageError, UserError

REMOTE = ("hf:", "stream:")  # sources that lie in no folder


@dataclass(frozen=True)
class Picture:
    """An image: its name, a path below the sources' root; its file's bytes; what decodes it.

    file: None in an archive, a table or a data set, where it is no file, and has 0 bytes. `load`
    raises ImageError.
    """

    name: str
    size: int
    load: Callable[[], Image.Image]
    file: Path | None


@dataclass(frozen=True)
class Pictures:
    """The images of all sources, each once; sentences on what is not read, or has no image."""

    root: Path
    rows: list[Picture]
    remarks: list[str]


def find_pictures(
    sources: Sequence[str | Path], report: Callable[[str], object] = lambda sentence: None
) -> Pictures:
    """The images of any sources of docs/images.md, in the order given; UserError where none is.

    report: takes a sentence before something is downloaded.
    """
    opened, missing = list[ImageFolder](), list[str]()
    for source in map(str, sources):
        try:
            images = open_images(source, report)
        except ImageError as error:
            why = str(error).removesuffix(".")
            missing.append(f"image {why}" if " not found" in why else why)
            continue
        if images.ids:
            opened.append(images)
        else:
            missing.append(f"no image file in '{source}'")
    if not opened:
        raise UserError("\n".join(missing))
    local = [os.path.abspath(images.root) for images in opened if not _remote(images)]
    root = Path(os.path.commonpath(local)) if local else opened[0].root
    rows = dict[str, Picture]()
    for number, images in enumerate(opened, 1):
        below = f"source-{number}" if _remote(images) else os.path.relpath(images.root, root)
        prefix = "" if below == "." or len(opened) == 1 else f"{Path(below).as_posix()}/"
        for image_id in images.store.in_order(images.ids) if images.store else images.ids:
            name = f"{prefix}{image_id}"
            if name not in rows:
                rows[name] = _picture(images, image_id, name)
    dropped = [f"{what} ({n})" for images in opened for what, n in images.dropped.items()]
    remarks = [f"Left out: {sentence}" for sentence in missing]
    remarks += [f"Not read, beside the images: {', '.join(dropped)}"] if dropped else []
    return Pictures(root, [*rows.values()], remarks)


def _remote(images: ImageFolder) -> bool:
    return str(images.source).startswith(REMOTE)


def _picture(images: ImageFolder, image_id: str, name: str) -> Picture:
    file = images.file(image_id)
    try:
        size = file.stat().st_size if file else 0
    except OSError:  # what is not there any more is listed where it does not decode
        size = 0
    return Picture(name, size, partial(images.load, image_id), file)
