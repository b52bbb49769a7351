"""Random scores: the control reward that every claim must beat. Cost: none."""

from __future__ import annotations

from hashlib import blake2b

from rewards import CaptionBatch, Scores, win_rate

RATE = 0.3  # it is right half of the time, by chance


class Random:
    """A number in [0, 1) drawn from image id and caption: the same pair, the same number."""

    range = (0.0, 1.0)
    reads = ("image", "text")

    def __call__(self, batch: CaptionBatch) -> Scores:
        return [
            int.from_bytes(blake2b(f"{i}\0{c}".encode(), digest_size=4).digest()) / 2**32
            for i, c in zip(batch.image_ids, batch.captions, strict=True)
        ]


def check(reward: Random, right: CaptionBatch, wrong: CaptionBatch) -> float:
    return win_rate(reward, right, wrong)
