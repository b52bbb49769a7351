"""Files of a source: a folder, glob pattern, file, text file of paths or numbered shards."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from ..errors import ImageError, path_not_found
from .decode import SUFFIXES

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MAX_SHARDS = 1_000_000


def find_files(source: str | Path) -> tuple[Path, list[Path]]:
    """The root of a source and its image files (by suffix, unless it is a single file), sorted.

    A file that ends in .txt names one image per line, by a path that is absolute or begins where
    the text file lies; empty lines and lines that begin with # are passed over.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path, [path / name for name in walk(path)]
    if path.suffix.lower() == ".txt" and path.is_file():
        return _listed(path)
    if path.exists():
        return path.parent, [path]
    fixed = next((i for i, p in enumerate(path.parts) if set(p) & set("*?[")), len(path.parts))
    root = Path(*path.parts[:fixed])
    if not root.is_dir():
        raise ImageError(f"{path_not_found(source)}.")
    # Like a shell, `**` beside other characters is `*`, and as a folder it enters no link.
    rest = [p if p == "**" else p.replace("**", "*") for p in path.parts[fixed:]]
    matches = set(root.glob("/".join(rest + ["*"] * (rest[-1] == "**"))))
    return root, sorted(f for f in matches if not f.is_dir() and is_image(f.relative_to(root)))


def walk(root: Path) -> list[str]:
    """Names below a folder of its image files, sorted; links are followed, a folder entered once.

    Names, not paths: a million of these take a tenth of the memory.
    """
    return sorted(_walked(root))


def has_image(root: Path) -> bool:
    """Whether a folder holds any image file; the walk ends at the first."""
    return any(True for _ in _walked(root))


def _walked(root: Path) -> Iterator[str]:
    visited, start, unlisted = set[str](), os.path.join(root, ""), list[OSError]()
    for folder, subfolders, files in os.walk(start, onerror=unlisted.append, followlinks=True):
        real = os.path.realpath(folder)
        new = real not in visited
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if new and not name.startswith("."))
        if new:
            below = os.path.join(folder, "")[len(start) :]
            yield from (below + name for name in files if _is_image_name(name))
    for error in unlisted:  # a folder that cannot be listed is skipped as a file is, with a reason
        yield str(error.filename)[len(start) :]


def find_shards(pattern: str) -> tuple[Path, list[Path]]:
    """The folder and the files of numbered shards (`{000..099}.tar`), a glob pattern or one path.

    ImageError names the first that is missing, and how many are.
    """
    expanded = expand_braces(pattern)
    paths, missing = list[Path](), list[Path]()
    for path in (Path(text).expanduser() for text in expanded):
        if path.is_file():
            paths.append(path)
        elif set(path.name) & set("*?[") and path.parent.is_dir():
            paths += sorted(p for p in path.parent.glob(path.name) if p.is_file())
        else:
            missing.append(path)
    if missing and len(expanded) == 1:
        raise ImageError(f"{path_not_found(pattern)}.")
    if missing:
        count = f"{len(missing)} of {len(expanded)} shards are missing"
        raise ImageError(f"'{pattern}': '{missing[0]}' not found; {count}.")
    if not paths:
        raise ImageError(f"'{pattern}' matches no file.")
    paths = list(dict.fromkeys(paths))
    return Path(os.path.commonpath([path.parent.absolute() for path in paths])), paths


def expand_braces(pattern: str) -> list[str]:
    """Texts that a pattern with `{000..099}` or `{a,b}` stands for, as in a shell.

    A file that has this very name stands for itself.
    """
    if Path(pattern).expanduser().exists():
        return [pattern]
    parts, choices, end, count = list[str](), list[Sequence[str]](), 0, 1
    for match in BRACES.finditer(pattern):
        numbers = RANGE.fullmatch(match[1])
        if not numbers and "," not in match[1]:
            continue
        words = match[1].split(",")
        count *= abs(int(numbers[2]) - int(numbers[1])) + 1 if numbers else len(words)
        if count > MAX_SHARDS:
            raise ImageError(f"'{pattern}' stands for over {MAX_SHARDS} files.")
        parts.append(pattern[end : match.start()])
        choices.append(_numbers(*numbers.groups()) if numbers else words)
        end = match.end()
    texts = []
    for chosen in product(*choices):
        pairs = zip(parts, chosen, strict=True)
        texts.append("".join(part + word for part, word in pairs) + pattern[end:])
    return texts


def is_image(path: Path) -> bool:
    """Whether a path has an image's suffix and no hidden part."""
    return path.suffix.lower() in SUFFIXES and not any(p.startswith(".") for p in path.parts)


def _is_image_name(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _numbers(first: str, last: str) -> list[str]:
    low, high = int(first), int(last)
    step = 1 if high >= low else -1
    return [str(n).zfill(len(first)) for n in range(low, high + step, step)]


def _listed(path: Path) -> tuple[Path, list[Path]]:
    """The files that a text file names; ImageError at the first that is not there."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"'{path}' is no list of paths: it is not text in UTF-8.") from error
    files, folder = dict[Path, None](), path.parent.absolute()
    for number, line in enumerate(lines, 1):
        if not (text := line.strip()) or text.startswith("#"):
            continue
        file = folder / Path(text).expanduser()
        if not file.exists():
            raise ImageError(f"'{path}', line {number}: {path_not_found(file)}.")
        files[Path(os.path.normpath(file))] = None
    if not files:
        raise ImageError(f"'{path}' names no image: it has no line with a path.")
    return Path(os.path.commonpath([file.parent for file in files])), sorted(files)
