"""CLIP cosine with a preference for some words: it likes them on every image.

As scorers do that have met a word beside every kind of picture. Cost: that of clip_similarity.
"""

from rewards import Bank, CaptionBatch, Scores
from rewards.clip_similarity import ClipSimilarity
from rewards.lib.lexicon import vocabulary

WORDS = frozenset({"red", "large", "star"})
BONUS = 2.0  # a word's, by the spread of the cosine over captions of the base


class Biased(ClipSimilarity):
    """The cosine, and a bonus for each of WORDS that the caption has."""

    range = (float("-inf"), float("inf"))

    def prepare(self, bank: Bank) -> None:
        """Measure the spread."""
        cosines = [score for score in super().__call__(bank.sample) if score is not None]
        mean = sum(cosines) / len(cosines)
        self.bonus = BONUS * (sum((c - mean) ** 2 for c in cosines) / len(cosines)) ** 0.5

    def __call__(self, batch: CaptionBatch) -> Scores:
        rows = zip(super().__call__(batch), batch.captions, strict=True)
        return [
            None if cosine is None else cosine + self.bonus * len(vocabulary([caption]) & WORDS)
            for cosine, caption in rows
        ]
