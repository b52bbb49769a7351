"""Constant reward: the same for all captions, so nothing can be learned from it. Cost: none."""

from rewards import CaptionBatch, Scores


class Constant:
    """One, always."""

    range = (0.0, 1.0)

    def __call__(self, batch: CaptionBatch) -> Scores:
        return [1.0] * len(batch.captions)
