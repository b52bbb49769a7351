"""Cosine between image and caption under a frozen CLIP (CLIPScore without its rescaling).

Hessel et al. 2021, arXiv 2104.08718. Cost: one text encoding per caption; images once per run.
Alone it is hacked by repetition and noun stuffing: keep it beside self_retrieval and the guards.
"""

from __future__ import annotations

from rewards import CaptionBatch, Scores, win_rate

RATE = 0.95


class ClipSimilarity:
    """How well caption and image agree: cosine under the run's training scorer."""

    range = (-1.0, 1.0)
    floor = 0.0

    def __init__(self, *, encoder: str | None = None, step: float = 0.005) -> None:
        """`encoder`: another one than the run's scorer; `step`: differences below are noise."""
        self.encoder = encoder
        self.step = step

    def __call__(self, batch: CaptionBatch) -> Scores:
        clip = batch.encoders(self.encoder)
        images = clip.image_features(batch.image_ids, batch.images)
        cosine = (images * clip.text_features(batch.captions)).sum(-1)
        return ((cosine / self.step).round() * self.step).tolist()


def check(reward: ClipSimilarity, right: CaptionBatch, wrong: CaptionBatch) -> float:
    return win_rate(reward, right, wrong)
