"""ROUGE-L (Lin 2004) as coco-caption computes it: F of the longest common subsequence, β = 1.2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BETA = 1.2


def rouge_l(
    captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> np.ndarray:
    """(N,) ROUGE-L of each caption with its references, all as tokens."""
    return np.array([_score(c, r) for c, r in zip(captions, references, strict=True)], np.float64)


def _score(tokens: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """F of the best precision and the best recall, which may be two references'."""
    common = [(lcs(tokens, other), len(other)) for other in references]
    precision = max(length / max(1, len(tokens)) for length, _ in common)
    recall = max(length / max(1, size) for length, size in common)
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def lcs(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, one integer as a row of the table.

    Bit-parallel: a cleared bit is a step up in the row (Hyyrö 2004).
    """
    places: dict[str, int] = {}
    for place, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << place
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        matches = row & places.get(token, 0)
        row = (row + matches | row - matches) & full
    return len(a) - row.bit_count()
