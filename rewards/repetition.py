"""Minus the share of the caption that repeats itself: n-grams said before, and doubled words.

Choose `n` as long as the shortest phrase that nobody says twice. Cost: none.
"""

from __future__ import annotations

from itertools import pairwise

from rewards import CaptionBatch, Scores, win_rate

RATE = 1.0


class Repetition:
    """Minus the share of n-grams and neighbouring words that are repeated."""

    range = (-1.0, 0.0)
    reads = ("text",)
    content = False

    def __init__(self, *, n: int = 3) -> None:
        """`n`: length in words of the phrases that count as repeated."""
        self.n = n

    def __call__(self, batch: CaptionBatch) -> Scores:
        return [-self.share(caption) for caption in batch.captions]

    def share(self, caption: str) -> float:
        """Share in [0, 1] of positions at which something is said again."""
        words = [w.strip(".,;:!?\"'()") for w in caption.lower().split()]
        phrases = [tuple(words[i : i + self.n]) for i in range(len(words) - self.n + 1)]
        again = len(phrases) - len(set(phrases))
        doubled = sum(a == b for a, b in pairwise(words))
        return min(1.0, (again + doubled) / max(1, len(phrases)))


def check(reward: Repetition, right: CaptionBatch, wrong: CaptionBatch) -> float:
    return win_rate(reward, right, [f"{c} {c} {c}" for c in right.captions])
