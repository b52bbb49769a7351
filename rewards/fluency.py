"""Likelihood of the caption as text under the reference policy: a guard, not a goal.

The mean negative log-likelihood per token without the image, against the same of base captions: up
to `free` standard deviations above their mean it costs nothing, from there it falls to −1 at
`worst`. A language model as a guard of captioning RL: VLRM (arXiv 2404.01911); a hinge, so that
nobody wins by talking like a platitude. Independent of every image-text model.
Cost: one forward pass of the policy over prompt and caption, without the image.
"""

from __future__ import annotations

import random

import torch

from rewards import Bank, CaptionBatch, Scores, win_rate

RATE = 0.9
MIN_SPREAD = 0.05  # nats per token: base captions that are all alike still have some spread


class Fluency:
    """Zero for captions as likely as the base's, falling to -1 for those that are no language."""

    range = (-1.0, 0.0)
    reads = ("text", "policy")
    content = False

    def __init__(self, *, free: float = 1.0, worst: float = 3.0) -> None:
        """`free`, `worst`: standard deviations above the base captions' mean at which the reward
        begins to fall and is at its lowest."""
        if not 0 <= free < worst:
            raise ValueError(f"fluency: need 0 <= free < worst, not {free} and {worst}")
        self.free, self.worst = free, worst
        self.mean = self.spread = 0.0

    def prepare(self, bank: Bank) -> None:
        """Learn how likely the base's own captions are."""
        nats = [value for value in self.per_token(bank.sample) if value is not None]
        if len(nats) < 2:
            raise ValueError("fluency needs captions of the base: all that it sampled are empty")
        nats_N = torch.tensor(nats)
        self.mean, self.spread = nats_N.mean().item(), max(MIN_SPREAD, nats_N.std().item())

    def per_token(self, batch: CaptionBatch) -> list[float | None]:
        """Mean negative log-likelihood of each caption's tokens, in nats; None for an empty one."""
        logps = batch.policy.log_probs(batch.captions, view="text")
        return [-logp.mean().item() if len(logp) else None for logp in logps]

    def __call__(self, batch: CaptionBatch) -> Scores:
        if not self.spread:
            raise RuntimeError("fluency was not prepared: it needs the base's captions")
        return [-1.0 if value is None else self.score(value) for value in self.per_token(batch)]

    def score(self, value: float) -> float:
        """The reward of a caption of so many nats per token."""
        above = (value - self.mean) / self.spread
        return -min(1.0, max(0.0, (above - self.free) / (self.worst - self.free)))


def check(reward: Fluency, right: CaptionBatch, wrong: CaptionBatch) -> float:
    """Against the same words in another order."""
    shuffle = random.Random(0)
    words = [c.split() for c in right.captions]
    return win_rate(reward, right, [" ".join(shuffle.sample(w, len(w))) for w in words])
