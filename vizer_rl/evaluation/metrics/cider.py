"""CIDEr-D (Vedantam et al. 2015) as coco-caption computes it, with document frequencies of its own.

Cosine of TF-IDF vectors of n-grams, for n from 1 to 4, with counts clipped to the reference's and a
Gaussian penalty on the difference of lengths; times 10. Document frequencies are of the references
of the images that are evaluated, an image being one document. They stay as they are when images are
resampled, so each image has a score of its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .ngrams import MAX_N, Ngram, count_ngrams

SIGMA = 6.0


@dataclass(frozen=True)
class _Vector:
    """TF-IDF of a caption's n-grams, the norms for n from 1 to 4, and its length in bigrams."""

    weights: list[dict[Ngram, float]]
    norms: list[float]
    length: int


class CiderD:
    """The references of N images as vectors; called with their captions."""

    def __init__(self, references: Sequence[Sequence[Sequence[str]]]) -> None:
        """references: of each image its captions, each as tokens."""
        counts = [[count_ngrams(tokens) for tokens in captions] for captions in references]
        self.frequency = Counter[Ngram]()
        for captions in counts:
            self.frequency.update({ngram for own in captions for n in own for ngram in n})
        self.log_images = math.log(max(1, len(references)))
        self.vectors = [[self._vector(own) for own in captions] for captions in counts]

    def __call__(self, captions: Sequence[Sequence[str]]) -> np.ndarray:
        """(N,) CIDEr-D of each caption, as tokens; 0 to 10."""
        pairs = zip(captions, self.vectors, strict=True)
        return np.array([self._score(tokens, vectors) for tokens, vectors in pairs], np.float64)

    def _score(self, tokens: Sequence[str], references: Sequence[_Vector]) -> float:
        own = self._vector(count_ngrams(tokens))
        return 10 * sum(_similarity(own, other) for other in references) / len(references)

    def _vector(self, counts: list[Counter[Ngram]]) -> _Vector:
        weights = [
            {
                ngram: count * (self.log_images - math.log(max(1, self.frequency[ngram])))
                for ngram, count in own.items()
            }
            for own in counts
        ]
        norms = [math.sqrt(sum(w * w for w in own.values())) for own in weights]
        return _Vector(weights, norms, counts[1].total())


def _similarity(own: _Vector, other: _Vector) -> float:
    """Mean over n of the clipped cosine, times the penalty on length."""
    total = 0.0
    for n in range(MAX_N):
        norm, theirs = own.norms[n] * other.norms[n], other.weights[n]
        if norm:
            shared = own.weights[n].keys() & theirs.keys()
            total += sum(min(own.weights[n][g], theirs[g]) * theirs[g] for g in shared) / norm
    return total / MAX_N * math.exp(-((own.length - other.length) ** 2) / (2 * SIGMA**2))
