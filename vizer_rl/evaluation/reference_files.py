"""Reference files: COCO captions and instances, Karpathy splits, CSV, JSONL and Flickr8k's tokens.

Each becomes entries: an image by file name, number or both, with captions or COCO classes. What is
not of one of these formats, or damaged, is one sentence.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from ..errors import UserError, nearest_allowed, path_not_found
from .metrics.coco_objects import CLASSES

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt")
FORMATS = (
    "COCO captions or instances, a Karpathy split, {image: captions}, or rows of image and caption"
)
IMAGE_KEYS = ("file_name", "filename", "file", "image", "image_name", "img", "image_id", "id")
CAPTION_KEYS = ("caption", "captions", "references", "reference", "text", "sentence", "comment")


@dataclass(frozen=True)
class Entry:
    """An image of a reference file; objects is None where the file tells nothing of them."""

    file: str
    number: str = ""  # COCO's image id
    captions: list[str] = field(default_factory=list)
    objects: set[str] | None = None


class _Image(BaseModel):
    id: int | str
    file_name: str = ""


class _Caption(BaseModel):
    image_id: int | str
    caption: str


class _Instance(BaseModel):
    image_id: int | str
    category_id: int


class _Category(BaseModel):
    id: int
    name: str


class _Coco(BaseModel):
    images: list[_Image] = []


class _Captions(_Coco):
    annotations: list[_Caption]


class _Instances(_Coco):
    annotations: list[_Instance]
    categories: list[_Category]


class _Sentence(BaseModel):
    raw: str


class _Split(BaseModel):
    filename: str
    cocoid: int | None = None
    sentences: list[_Sentence]


def read_entries(path: Path) -> list[Entry]:
    """The images of one reference file; UserError where it cannot be read or is of no format."""
    path = path.expanduser()
    if not path.is_file():
        raise UserError(f"reference file {path_not_found(path)}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        allowed = nearest_allowed(suffix, SUFFIXES)
        raise UserError(f"reference file '{path}': format '{suffix}' is not read; {allowed}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"reference file '{path}' cannot be read: {error}") from error
    if suffix == ".json":
        return _json_entries(path, text)
    if suffix == ".jsonl":
        lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
        return _row_entries(path, ((n, _parsed(path, line, n)) for n, line in lines))
    if suffix == ".txt" and re.match(r"[^\t\n]+#\d+\t", text):
        return _token_entries(path, text)
    return _table_entries(path, text)


def _parsed(path: Path, text: str, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        where = f"{path}:{line}" if line else str(path)
        raise UserError(f"reference file '{where}' is damaged: {error}") from error


def _checked(path: Path, kind: Any, content: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"reference file '{path}' is damaged: {where}: {first['msg']}") from error


def _json_entries(path: Path, text: str) -> list[Entry]:
    content = _parsed(path, text)
    if isinstance(content, list):
        return _row_entries(path, enumerate(content, 1))
    if not isinstance(content, dict) or not content:
        raise UserError(f"reference file '{path}' has no images; allowed: {FORMATS}")
    if "annotations" in content:
        if "categories" in content:
            return _instances(path, _checked(path, _Instances, content))
        return _coco(_checked(path, _Captions, content))
    if "images" in content:
        splits = _checked(path, list[_Split], content["images"])
        return [
            Entry(s.filename, str(s.cocoid or ""), [sentence.raw for sentence in s.sentences])
            for s in splits
        ]
    captions = _checked(path, dict[str, str | list[str]], content)
    return [_named(image, _texts(texts)) for image, texts in captions.items()]


def _coco(content: _Captions) -> list[Entry]:
    captions = defaultdict[str, list[str]](list)
    for row in content.annotations:
        captions[str(row.image_id)].append(row.caption)
    files = _file_by_number(content)
    return [Entry(files.get(n) or n, n, captions[n]) for n in {**files, **captions}]


def _instances(path: Path, content: _Instances) -> list[Entry]:
    names = {category.id: category.name for category in content.categories}
    for name in names.values():
        if name not in CLASSES:
            allowed = nearest_allowed(name, CLASSES)
            raise UserError(f"reference file '{path}': '{name}' is no class of COCO; {allowed}")
    objects = defaultdict[str, set[str]](set)
    for row in content.annotations:
        if row.category_id not in names:
            raise UserError(f"reference file '{path}' is damaged: no category {row.category_id}")
        objects[str(row.image_id)].add(names[row.category_id])
    files = _file_by_number(content)
    return [Entry(files.get(n) or n, n, objects=objects[n]) for n in {**files, **objects}]


def _file_by_number(content: _Coco) -> dict[str, str]:
    """COCO's file names by image id; an annotation may be of an image that is not listed."""
    return {str(image.id): image.file_name for image in content.images}


def _row_entries(path: Path, rows: Iterable[tuple[int, Any]]) -> list[Entry]:
    """Rows that name an image and hold a caption or a list of them."""
    entries = dict[str, Entry]()
    for number, row in rows:
        image = _value(row, IMAGE_KEYS) if isinstance(row, Mapping) else None
        texts = _value(row, CAPTION_KEYS) if isinstance(row, Mapping) else None
        valid = isinstance(texts, str) or (
            isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        )
        if not isinstance(image, str | int) or not valid:
            raise UserError(
                f"reference file '{path}:{number}': {str(row)[:60]!r}; allowed: an image "
                f"({', '.join(IMAGE_KEYS)}) and its caption ({', '.join(CAPTION_KEYS)})"
            )
        entry = entries.setdefault(str(image), _named(str(image), []))
        entry.captions.extend(_texts(texts))
    return list(entries.values())


def _table_entries(path: Path, text: str) -> list[Entry]:
    """CSV with a line of heads, parted by commas, tabs, semicolons or bars."""
    head = text.partition("\n")[0]
    splits = [[cell.strip(' "\r').lower() for cell in head.split(mark)] for mark in ",\t;|"]
    fits = [_value(dict.fromkeys(cells, 1), IMAGE_KEYS) for cells in splits]
    fits = [
        fit and _value(dict.fromkeys(cells, 1), CAPTION_KEYS)
        for fit, cells in zip(fits, splits, strict=True)
    ]
    if not any(fits):
        raise UserError(
            f"reference file '{path}' begins with {head[:60]!r}; allowed: heads for the image "
            f"({', '.join(IMAGE_KEYS)}) and its caption ({', '.join(CAPTION_KEYS)}), or Flickr8k's "
            "'name.jpg#0', a tab and a caption"
        )
    chosen = next(index for index, fit in enumerate(fits) if fit)
    try:
        reader = csv.reader(text.splitlines()[1:], delimiter=",\t;|"[chosen], strict=True)
        cells = [(reader.line_num + 1, [cell.strip() for cell in row]) for row in reader if row]
    except csv.Error as error:
        raise UserError(f"reference file '{path}' is damaged: {error}") from error
    rows = ((n, dict(zip(splits[chosen], row, strict=False))) for n, row in cells)
    return _row_entries(path, rows)


def _token_entries(path: Path, text: str) -> list[Entry]:
    """Flickr8k.token.txt: `name.jpg#0`, a tab, a caption."""
    rows = list[tuple[int, Any]]()
    for number, line in enumerate(text.splitlines(), 1):
        match = re.fullmatch(r"([^\t]+)#\d+\t(.+)", line)
        if line.strip() and not match:
            raise UserError(f"reference file '{path}:{number}' is damaged: {line[:60]!r}")
        if match:
            rows.append((number, {"file": match[1], "caption": match[2]}))
    return _row_entries(path, rows)


def _named(image: str, captions: list[str]) -> Entry:
    return Entry("", image, captions) if image.isdigit() else Entry(image, "", captions)


def _value(row: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)


def _texts(texts: Any) -> list[str]:
    return [texts] if isinstance(texts, str) else texts
