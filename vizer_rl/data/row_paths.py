"""Paths that the rows of a data set name in place of an image: which of them are read."""

from __future__ import annotations

from pathlib import Path

import datasets
from huggingface_hub import constants

from ..errors import ImageError

REMOTE = ("hf://", "https://", "http://")
UNPACKED = ("zip", "tar", "gzip", "bz2", "xz", "zstd")  # what a path may lead through, on its way


def checked_path(path: str, folder: str) -> str:
    """The path that a row names: remote, in the data set's folder or in the caches; ImageError.

    Else a data set could bring any image of this machine into a run. A path is a chain in the form
    of fsspec, `zip://a.png::https://host/x.zip`: its last link says where the file lies, but only
    as long as those before it do no more than unpack.
    """
    *outer, base = path.split("::")
    unpacks = all(link.partition("://")[0] in UNPACKED for link in outer)
    if unpacks and (base.startswith(REMOTE) or _is_below(base.removeprefix("file://"), folder)):
        return path
    raise ImageError("its row names a file elsewhere on this machine")


def _is_below(base: str, folder: str) -> bool:
    """Whether it is an absolute path, with links resolved, in the folder or in a cache."""
    if "://" in base or not Path(base).is_absolute():
        return False
    roots = (folder, datasets.config.HF_CACHE_HOME, constants.HF_HUB_CACHE)
    here = Path(base).resolve()
    return any(here.is_relative_to(Path(root).expanduser().resolve()) for root in roots)
