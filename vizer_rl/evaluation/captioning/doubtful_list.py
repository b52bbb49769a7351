"""Captions that a person should look at, worst first: what speaks against each, in words.

What counts: each doubtful word, an end that was not reached, and a held-out score among the lowest
of the set; more of them come first. Then unsure words count, which are right more often, and then
the score. How good the order is stands in docs/captions.md.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...files import read_jsonl, write_jsonl
from .journal import Row

LOWEST = 0.05  # of the held-out scores
FEWEST = 20  # captions of which a twentieth is one


def doubtful_list(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The lines of the list: image, caption, score, and `why`, one sentence for each reason."""
    scores = [row["score"] for row in rows if "score" in row]
    floor = float(np.quantile(scores, LOWEST)) if len(scores) >= FEWEST else -np.inf
    ranked = list[tuple[tuple[Any, ...], dict[str, Any]]]()
    for row in rows:
        why, unsure = _reasons(row, floor), _unsure(row)
        if why or unsure:
            line = {"image": row["image"], "caption": row["caption"], "score": row.get("score")}
            rank = (-len(why), -len(unsure), row.get("score", 0.0), row["image"])
            ranked.append((rank, {**line, "why": [*why, *unsure]}))
    return [line for _, line in sorted(ranked, key=lambda pair: pair[0])]


def check_list(path: Path, overwrite: bool, taken: Sequence[Path] = ()) -> None:
    """UserError where no list can be written, or a file is there that is none, unless overwrite.

    taken: files that the command writes itself.
    """
    above = next(p for p in path.absolute().parents if p.exists())
    if path.is_dir() or not above.is_dir():
        what = "is a folder" if path.is_dir() else f"lies below the file '{above}'"
        raise UserError(f"--doubtful '{path}' {what}: give the name of a file")
    if os.path.realpath(path) in {os.path.realpath(file) for file in taken}:
        raise UserError(
            f"--doubtful '{path}' is a file that --out writes itself: give another name"
        )
    if not path.exists() or overwrite:
        return
    try:
        rows = read_jsonl(path, dict[str, Any])
    except UserError:
        rows = [{}]
    if not all("why" in row for row in rows):
        raise UserError(
            f"--doubtful '{path}' exists and is no list of doubtful captions: give another name, "
            "or --overwrite to replace it"
        )


def write_list(path: Path, rows: Sequence[Row]) -> int:
    """Write the list of these rows; how many are on it."""
    lines = doubtful_list(rows)
    write_jsonl(path, lines)
    return len(lines)


def _reasons(row: Row, floor: float) -> list[str]:
    why = [
        f"{word['word']!r}: {word['instead']!r} fits the image better"
        for word in row.get("doubtful") or ()
    ]
    if not row["ended"]:
        why.append("it comes to no end")
    if row.get("score", np.inf) <= floor:
        why.append(f"held-out score {row['score']:.3f}, among the lowest {LOWEST:.0%}")
    return why


def _unsure(row: Row) -> list[str]:
    return [f"{w['word']!r}: certainty {w['certainty']:.2f}" for w in row.get("unsure") or ()]
