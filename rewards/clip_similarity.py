"""Cosine between image and caption under a frozen CLIP (CLIPScore without its rescaling).

Hessel et al. 2021, arXiv 2104.08718. Captions are scored sentence by sentence, for what lies beyond
the encoder's context is a free zone for inventions; the log tells how many captions had a sentence
that was cut even so. Cost: one text encoding per sentence, images once per run.
Alone it is hacked by repetition and noun stuffing: keep it beside self_retrieval and the guards.
"""

from __future__ import annotations

from rewards import CaptionBatch, Parts, Scores, win_rate
from rewards.lib.chunks import Chunked

RATE = 0.95


class ClipSimilarity:
    """How well caption and image agree: cosine under the run's training scorer."""

    range = (-1.0, 1.0)
    reads = ("image", "text")

    def __init__(self, *, encoder: str | None = None, step: float = 0.005) -> None:
        """`encoder`: another one than the run's scorer; `step`: differences below are noise."""
        self.encoder = encoder
        self.step = step
        self._cut = self._scored = 0

    def __call__(self, batch: CaptionBatch) -> Scores:
        clip = batch.encoders(self.encoder)
        images = clip.image_features(batch.image_ids, batch.images)
        captions = Chunked(clip, batch.captions)
        self._cut, self._scored = self._cut + captions.cut(), self._scored + len(batch.captions)
        cosine = (images * captions.vectors).sum(-1)
        return ((cosine / self.step).round() * self.step).tolist()

    def parts(self, batch: CaptionBatch) -> Parts:
        """Each caption's sentences with their cosines."""
        clip = batch.encoders(self.encoder)
        images = clip.image_features(batch.image_ids, batch.images)
        captions = Chunked(clip, batch.captions)
        return [
            list(zip(texts, (captions.vectors_of(texts) @ image).tolist(), strict=True))
            for texts, image in zip(captions.parts, images, strict=True)
        ]

    def notes(self) -> dict[str, float]:
        """`cut`: share of the captions since the last call that the encoder did not read whole."""
        share = self._cut / max(1, self._scored)
        self._cut = self._scored = 0
        return {"cut": share}


def check(reward: ClipSimilarity, right: CaptionBatch, wrong: CaptionBatch) -> float:
    return win_rate(reward, right, wrong)
