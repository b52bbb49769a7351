"""Text features of captions past an encoder's context: the mean of their sentences' vectors.

A cosine is linear in the caption's vector, so the mean of the sentences' unit vectors gives the
mean of their cosines. It is not made a unit vector again: sentences that disagree should cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rewards import Encoder, sentences


class Chunked:
    """Text features of captions of any length under one encoder; counts what is cut all the same.

    parts: for each caption the texts that were encoded, the caption itself where it fits;
    vectors: (N, D), the mean of their unit vectors; cut: captions with a sentence that alone is
    past the context.
    """

    def __init__(self, encoder: Encoder, captions: Sequence[str]) -> None:
        long = dict(zip(captions, encoder.too_long(captions), strict=True))
        split = {c: (sentences(c) or [c]) if is_long else [c] for c, is_long in long.items()}
        self.parts = [split[c] for c in captions]
        pieces = list(dict.fromkeys(p for c in split for p in split[c]))
        rest = [p for p in pieces if p not in long]
        long |= dict(zip(rest, encoder.too_long(rest), strict=True)) if rest else {}
        self.cut = sum(any(long[p] for p in parts) for parts in self.parts)
        row = {piece: k for k, piece in enumerate(pieces)}
        self._vectors, self._rows = encoder.text_features(pieces), row
        self.vectors = torch.stack([self.vectors_of(parts).mean(0) for parts in self.parts])

    def vectors_of(self, parts: Sequence[str]) -> torch.Tensor:
        """(len(parts), D) unit vectors of these of the parts."""
        return self._vectors[[self._rows[p] for p in parts]]
