"""BLEU-1..4 (Papineni et al. 2002) of a corpus, as coco-caption computes it.

BLEU is a ratio of sums over the corpus, not a mean over images: what each image adds to the sums is
kept, so that a bootstrap resamples images and computes BLEU anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..statistics import CorpusMetric
from .ngrams import MAX_N, Ngram, count_ngrams

TINY, SMALL = 1e-15, 1e-9  # coco-caption's, against 0 / 0: without a match BLEU is nearly 0


class Bleu:
    """The references of N images, counted once; called with their captions."""

    def __init__(self, references: Sequence[Sequence[Sequence[str]]]) -> None:
        """references: of each image its captions, each as tokens."""
        self.lengths = [[len(tokens) for tokens in captions] for captions in references]
        self.largest = [_largest_counts(captions) for captions in references]

    def __call__(self, captions: Sequence[Sequence[str]]) -> dict[str, CorpusMetric]:
        """BLEU-1 to BLEU-4 of captions (N,), each as tokens, as "bleu_1" to "bleu_4"."""
        rows = zip(captions, self.largest, self.lengths, strict=True)
        sums_NS = np.array([_statistics(*row) for row in rows], np.float64)
        return {f"bleu_{n}": CorpusMetric(sums_NS, _Bleu(n)) for n in range(1, MAX_N + 1)}


class _Bleu:
    """BLEU-n of sums (…, S) of what `_statistics` gives."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        matched, total = sums[..., :MAX_N] + TINY, sums[..., MAX_N : 2 * MAX_N] + SMALL
        precisions = (matched / total)[..., : self.n]
        ratio = (sums[..., -2] + TINY) / (sums[..., -1] + SMALL)  # of the lengths
        brevity = np.exp(np.minimum(0, 1 - 1 / ratio))
        return precisions.prod(-1) ** (1 / self.n) * brevity


def _largest_counts(captions: Sequence[Sequence[str]]) -> list[Counter[Ngram]]:
    """Of each n-gram the largest count in any reference."""
    largest = [Counter[Ngram]() for _ in range(MAX_N)]
    for tokens in captions:
        for counts, own in zip(largest, count_ngrams(tokens), strict=True):
            counts |= own
    return largest


def _statistics(
    tokens: Sequence[str], largest: list[Counter[Ngram]], lengths: Sequence[int]
) -> list[int]:
    """Matched and all n-grams for n from 1 to 4, length, and that of the closest reference."""
    matched = [
        sum(min(count, bound[ngram]) for ngram, count in own.items())
        for own, bound in zip(count_ngrams(tokens), largest, strict=True)
    ]
    total = [max(0, len(tokens) - n) for n in range(MAX_N)]
    closest = min(lengths, key=lambda length: (abs(length - len(tokens)), length))
    return [*matched, *total, len(tokens), closest]
