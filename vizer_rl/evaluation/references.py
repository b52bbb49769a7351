"""References of held-out images: read from files, matched by file name or number, misses named."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..errors import UserError, nearest_match
from .reference_files import SUFFIXES, Entry, read_entries

NAMED = 3  # misses that a sentence names; eval.json has all


@dataclass(frozen=True)
class References:
    """What reference files hold on these images, by image id."""

    files: list[str] = field(default_factory=list)
    captions: dict[str, list[str]] = field(default_factory=dict)
    objects: dict[str, set[str]] = field(default_factory=dict)  # COCO classes
    without: list[str] = field(default_factory=list)  # images that no file has
    not_here: list[str] = field(default_factory=list)  # images of the files that are not ours
    sentences: list[str] = field(default_factory=list)


def beside(folder: Path) -> list[Path]:
    """The file `references.json`, `.jsonl`, `.csv`, `.tsv` or `.txt` in a folder of images."""
    return [p for suffix in SUFFIXES if (p := folder / f"references{suffix}").is_file()]


def read_references(paths: Sequence[Path], ids: Sequence[str]) -> References:
    """The captions and objects of images; UserError where a file has none of them.

    An image is matched by its whole name, then by the file's name, without its suffix, and by the
    number that this ends with ("COCO_val2014_000000000042" is 42); what fits two images fits none.
    """
    result, names = References(files=[str(path) for path in paths]), _Names(ids)
    for path in paths:
        entries = read_entries(path)
        matches = [(names.match(entry), entry) for entry in entries]
        if not any(image_id for image_id, _ in matches):
            raise UserError(_none_matches(path, entries, ids))
        for image_id, entry in matches:
            if not image_id:
                result.not_here.append(entry.file or entry.number)
                continue
            if texts := [text.strip() for text in entry.captions if text.strip()]:
                result.captions.setdefault(image_id, []).extend(texts)
            if entry.objects is not None:
                result.objects.setdefault(image_id, set()).update(entry.objects)
    kept = {*result.captions, *result.objects}
    result.without.extend(image_id for image_id in ids if image_id not in kept)
    result.sentences.extend(_sentences(result, len(ids)))
    return result


class _Names:
    """Image ids by what a reference file may call them, the surest first."""

    def __init__(self, ids: Iterable[str]) -> None:
        self.levels = [defaultdict[str, list[str]](list) for _ in range(4)]
        for image_id in ids:
            path = PurePosixPath(image_id)
            number = re.search(r"\d+$", path.stem)
            names = [image_id, path.name, path.stem, str(int(number[0])) if number else ""]
            for level, name in zip(self.levels, names, strict=True):
                level[name].append(image_id)

    def match(self, entry: Entry) -> str | None:
        """The one image that an entry is of; None where there is none, or more than one."""
        path = PurePosixPath(entry.file.replace("\\", "/"))
        number = str(int(entry.number)) if entry.number.isdigit() else ""
        names = [[str(path)], [path.name], [path.stem, path.name, entry.number], [number]]
        for level, candidates in zip(self.levels, names, strict=True):
            for name in candidates:
                if name and name in level:
                    return level[name][0] if len(level[name]) == 1 else None
        return None


def _none_matches(path: Path, entries: Sequence[Entry], ids: Sequence[str]) -> str:
    theirs = [entry.file or entry.number for entry in entries]
    nearest = nearest_match(theirs[0], ids) if theirs else None
    return (
        f"reference file '{path}' has none of the {len(ids)} images: it names {_few(theirs)}, they "
        f"are {_few(ids)}" + (f"; nearest: {nearest}" if nearest else "")
    )


def _sentences(references: References, total: int) -> list[str]:
    """How many images have references, and what could not be matched."""
    captions = sum(map(len, references.captions.values()))
    parts = [f"{captions} captions of {len(references.captions)} of {total} images"]
    if references.objects:
        parts.append(f"objects of {len(references.objects)}")
    sentences = [f"References: {', '.join(parts)}."]
    if references.without:
        sentences.append(f"{len(references.without)} images have none: {_few(references.without)}.")
    if references.not_here:
        names = _few(references.not_here)
        sentences.append(f"{len(references.not_here)} images of the files are not here: {names}.")
    return sentences


def _few(names: Sequence[str]) -> str:
    more = ", …" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more if names else "none"
