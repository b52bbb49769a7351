"""The pass over a new source: each image read and decoded, its facts for the search of duplicates.

Threads read and decode by CHUNK; what they have found out of a file or archive that has not changed
since is kept between runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b, file_digest
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from rewards.lib import disk_cache

from ..errors import ImageError
from .decode import KEPT_SIDES, Data, decode_error, read_bytes, small_rgb
from .duplicates import FACTS, fingerprint
from .lazy import WORKERS
from .stores import State, check_bytes, file_state

CHUNK = 64  # images that one thread takes over
KEPT_AFTER = 50_000  # images after which the facts are kept, so that a kill loses no more
HASHED_SIDES = (144, 144)  # pixels that a JPEG is decoded to, at least, for its hash alone
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Source:
    """How images are read: `data` and `state` of an id; in_rows: by one thread, in order."""

    data: Callable[[str], Data]
    state: Callable[[str], State]
    in_rows: bool


def problems(source: Source, ids: Sequence[str], full: bool) -> dict[str, str]:
    """Why images cannot be used, by id; full: each is decoded to its end, else its header."""
    found_problems = dict[str, str]()
    for rows in _by_chunks(source, ids, lambda image_id, data: _problem(data, full)):
        found_problems |= {image_id: why for image_id, why in rows if why}
    return found_problems


def facts(
    source: Source, ids: Sequence[str], full: bool, kept: Path | None
) -> tuple[np.ndarray, dict[str, str]]:
    """Facts of the images (N,) in the order of `ids`, and why others cannot be used.

    The rows of those are empty. kept: the file that keeps the facts between runs.
    """
    before = _read_kept(kept)
    names = [_name(image_id, source.state(image_id)) for image_id in ids]
    facts_N, found_problems = np.zeros(len(ids), FACTS), dict[str, str]()
    row = _rows_of(before, names)
    usable = (row >= 0) & (before["full"][row] | (not full)) if len(before) else row >= 0
    facts_N[usable] = before[row[usable]]
    rest = np.flatnonzero(~usable)
    results = _by_chunks(
        source, [ids[n] for n in rest.tolist()], lambda _, data: _facts(data, full)
    )
    pairs = zip(rest.tolist(), chain.from_iterable(results), strict=True)
    for count, (n, (image_id, result)) in enumerate(pairs, 1):
        if isinstance(result, str):
            found_problems[image_id] = result
        else:
            facts_N[n] = (names[n], *result, full)
        if kept and count % KEPT_AFTER == 0:
            _keep(kept, facts_N[facts_N["name"] != 0])
    if kept and len(rest) > len(found_problems):
        _keep(kept, facts_N[facts_N["name"] != 0])
    return facts_N, found_problems


def _by_chunks(
    source: Source, ids: Sequence[str], function: Callable[[str, Data], B]
) -> Iterator[list[tuple[str, B | str]]]:
    """(id, function(id, data)) of each image in order, or (id, why its data cannot be had)."""

    def apply(chunk: list[tuple[str, Data | None]]) -> list[tuple[str, B | str]]:
        results = list[tuple[str, B | str]]()
        for image_id, data in chunk:
            try:
                data = source.data(image_id) if data is None else data
                results.append((image_id, function(image_id, data)))
            except ImageError as error:
                results.append((image_id, str(error)))
        return results

    def read(image_id: str) -> tuple[str, Data | None]:
        if not source.in_rows:
            return image_id, None
        try:
            return image_id, source.data(image_id)
        except ImageError:
            return image_id, None  # the thread meets it again, and says so

    size = CHUNK // 8 if source.in_rows else CHUNK  # those in memory are held in few
    chunks = ([read(i) for i in ids[n : n + size]] for n in range(0, len(ids), size))
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield from _ahead(apply, chunks)


def _ahead(function: Callable[[A], B], items: Iterator[A]) -> Iterator[B]:
    """function(item) in order, by threads; a few items ahead are held and no more."""
    pending = list[Future[B]]()
    with ThreadPoolExecutor(WORKERS) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * WORKERS:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()


def _problem(data: Data, full: bool) -> str:
    return decode_error(data, full) or ""


def _facts(data: Data, full: bool) -> tuple[Any, ...]:
    """Hash of the bytes, difference hash and mean colour; ImageError(reason)."""
    sides = KEPT_SIDES if full else HASHED_SIDES
    if isinstance(data, Path) and (state := file_state(data)) and check_bytes(state[0]):
        rgb = small_rgb(data, sides)
        with data.open("rb") as file:
            digest = file_digest(file, partial(blake2b, digest_size=8)).digest()
        return (_number(digest), *fingerprint(rgb))
    content = read_bytes(data)
    return (_hash(content), *fingerprint(small_rgb(content, sides)))


def _name(image_id: str, state: State) -> int:
    return _hash(f"{image_id}\n{state}".encode(errors="surrogateescape"))


def _hash(content: bytes) -> int:
    """64 bits of blake2b, 0 left out: of a million images two share one with a chance of 3e-8."""
    return _number(blake2b(content, digest_size=8).digest())


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "big") or 1


def _rows_of(before: np.ndarray, names: list[int]) -> np.ndarray:
    """The row of each name in kept facts, which are sorted by name; -1 where there is none."""
    wanted = np.array(names, np.uint64)
    rows = np.searchsorted(before["name"], wanted)
    rows[rows == len(before)] = 0
    found_rows = before["name"][rows] == wanted if len(before) else np.zeros(len(names), bool)
    return np.where(found_rows, rows, -1)


def _read_kept(path: Path | None) -> np.ndarray:
    content = disk_cache.read(path) if path else None
    if content is None:
        return np.zeros(0, FACTS)
    kept: np.ndarray = np.load(BytesIO(content))
    return kept if kept.dtype == FACTS else np.zeros(0, FACTS)


def _keep(path: Path, facts_N: np.ndarray) -> None:
    buffer = BytesIO()
    np.save(buffer, facts_N[np.argsort(facts_N["name"])])
    disk_cache.write(path, buffer.getvalue())
