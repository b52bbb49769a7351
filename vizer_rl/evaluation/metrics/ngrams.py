"""N-grams of tokenised captions, which BLEU and CIDEr-D count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

MAX_N = 4
Ngram = tuple[str, ...]


def count_ngrams(tokens: Sequence[str]) -> list[Counter[Ngram]]:
    """How often each n-gram occurs, for n from 1 to 4."""
    return [
        Counter(zip(*(tokens[start:] for start in range(n)), strict=False))
        for n in range(1, MAX_N + 1)
    ]
