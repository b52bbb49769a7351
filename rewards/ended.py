"""Does the caption come to its end? A gate: -1 where it was cut at the longest completion, else 0.

Every run has it (weight 1 unless the run file says otherwise). No content reward judges a caption
that was cut, for nobody knows how it would have gone on; it ranks below all others of its image, by
`weight` times the standard deviation of their advantages. Cost: none.
"""

from __future__ import annotations

from dataclasses import replace

from rewards import CaptionBatch, Scores, win_rate

RATE = 1.0


class Ended:
    """-1 for a caption without an end token, 0 for one with it."""

    range = (-1.0, 0.0)
    reads = ("text",)
    content = False
    gates = True

    def __call__(self, batch: CaptionBatch) -> Scores:
        ended = batch.ended or [True] * len(batch.captions)
        return [0.0 if end else -1.0 for end in ended]


def check(reward: Ended, right: CaptionBatch, wrong: CaptionBatch) -> float:
    """Against the same captions, cut."""
    rows = [True] * len(right.captions), [False] * len(right.captions)
    whole, cut = (replace(right, ended=ended) for ended in rows)
    return win_rate(reward, whole, cut)
