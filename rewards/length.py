"""Zero inside a band of caption lengths, falling to -1 outside: a guard, not a goal. Cost: none."""

from __future__ import annotations

from rewards import CaptionBatch, Scores, win_rate

RATE = 1.0


class Length:
    """Zero from `shortest` to `longest` words, falling linearly to -1 at none or twice as many."""

    range = (-1.0, 0.0)
    reads = ("text",)
    content = False

    def __init__(self, *, shortest: int = 3, longest: int = 40) -> None:
        """`shortest`, `longest`: words, both still inside the band."""
        if not 0 < shortest <= longest:
            raise ValueError(f"length: need 0 < shortest <= longest, not {shortest} and {longest}")
        self.shortest, self.longest = shortest, longest

    def __call__(self, batch: CaptionBatch) -> Scores:
        return [self.score(len(caption.split())) for caption in batch.captions]

    def score(self, words: int) -> float:
        """The reward of a caption of so many words."""
        if words < self.shortest:
            return words / self.shortest - 1.0
        return -min(1.0, max(0, words - self.longest) / self.longest)


def check(reward: Length, right: CaptionBatch, wrong: CaptionBatch) -> float:
    return win_rate(reward, right, [" ".join([c] * 40) for c in right.captions])
