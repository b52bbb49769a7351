"""Text features of captions of any length: the mean of their sentences' vectors, by words.

A cosine is linear in the caption's vector, so this is the mean cosine of the words, each counted
with its sentence's. Captions that fit the encoder's context are no exception, for a whole caption
scores higher than the mean of its sentences: the score would drop by that where the context ends.
Without the words as weights the first word of a new sentence would count as much as a sentence. The
mean is not made a unit vector again: sentences that disagree should cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL.Image import Image

from rewards import Encoder, sentences


class Chunked:
    """Text features of captions of any length under one encoder.

    parts: for each caption its sentences, the caption as it stands where it is one; vectors:
    (N, D), the mean of the sentences' unit vectors, weighted by their words.
    """

    def __init__(self, encoder: Encoder, captions: Sequence[str]) -> None:
        split = {c: parts if len(parts := sentences(c)) > 1 else [c] for c in captions}
        self.parts = [split[c] for c in captions]
        pieces = list(dict.fromkeys(p for parts in self.parts for p in parts))
        self._encoder, self._rows = encoder, {piece: row for row, piece in enumerate(pieces)}
        self._vectors = encoder.text_features(pieces)
        self.vectors = torch.stack([self._mean(parts) for parts in self.parts])

    def vectors_of(self, parts: Sequence[str]) -> torch.Tensor:
        """(len(parts), D) unit vectors of these of the parts."""
        return self._vectors[[self._rows[p] for p in parts]]

    def cut(self) -> int:
        """Number of captions with a sentence that alone is past the context."""
        pieces = list(self._rows)
        too_long = dict(zip(pieces, self._encoder.too_long(pieces), strict=True))
        return sum(any(too_long[p] for p in parts) for parts in self.parts)

    def _mean(self, parts: Sequence[str]) -> torch.Tensor:
        vectors = self.vectors_of(parts)
        words = vectors.new_tensor([max(1, len(p.split())) for p in parts])
        return ((words / words.sum())[:, None] * vectors).sum(0)


def caption_cosines(
    encoder: Encoder, ids: Sequence[str], images: Sequence[Image], captions: Sequence[str]
) -> torch.Tensor:
    """(N,) cosine of each image with its caption, sentence by sentence: the held-out score."""
    features = encoder.image_features(ids, images)
    return (features * Chunked(encoder, captions).vectors).sum(-1)
