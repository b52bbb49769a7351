"""Mutual information of caption and image: do its words depend on it, for the reference policy?

    e_t = [log p(c_t | image) − log p(c_t | masked image)]      clipped to [0, max_nats]
    k_t = [log p(c_t | neighbour) − log p(c_t | masked image)]  clipped likewise
    R   = mean over content tokens of [e_t − control · k_t]₊, over the base's 90th percentile, ≤ 1

The evidence e is pointwise mutual information with what the mask hides (60 % of the patches, as in
PAPO, arXiv 2507.06448). The control k is what the image's nearest neighbour in the bank gives in
its place: a token that gains from any whole picture, or is as true of a look-alike, nets less. A
token that the policy holds for implausible costs a nat, so that odd words do not pay; a mean does
not pay for length; beyond the 90th percentile of base captions there is nothing to win. All under
the frozen policy: training cannot make its blind side blinder. As a reward for open captions it is
experimental: no paper shows it to help.
Cost: three forward passes of the policy over image, prompt and caption.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor

from rewards import Bank, CaptionBatch, Parts, Scores, win_rate
from rewards.lib.images import Picked
from rewards.lib.text import content_tokens

RATE = 0.9
MIN_SATURATION = (
    0.1  # nats: captions that depend on nothing are not scaled up to look as if they did
)


class VisualDependence:
    """Experimental: how much likelier the image makes the content words than a masked one does."""

    range = (-1.0, 1.0)
    floor = -1.0
    reads = ("image", "text", "policy")

    def __init__(
        self,
        *,
        max_nats: float = 3.0,
        control: float = 0.5,
        plausible: float = 0.01,
        near_duplicate: float = 0.95,
        step: float = 0.02,
    ) -> None:
        """`max_nats`: that one token can bring; `control`: weight of what a look-alike gives, 1
        leaves only what tells them apart; `plausible`: probability below which a token costs a nat;
        `near_duplicate`: cosine of the policy's own image features, centred, above which a
        neighbour is the same picture; `step`: differences below are noise."""
        self.max_nats, self.control, self.plausible, self.step = max_nats, control, plausible, step
        self.near_duplicate = near_duplicate
        self.saturation = 0.0
        self.features = self.mean = torch.empty(0)
        self.images: Sequence[Image] = []

    def prepare(self, bank: Bank) -> None:
        """Find where base captions saturate; neighbours come from the images that these are of."""
        sample = bank.sample
        rows = {name: row for row, name in reversed(list(enumerate(sample.image_ids)))}
        if len(rows) < 3:
            raise ValueError(
                f"visual_dependence looks for neighbours in {len(rows)} images: need 3"
            )
        self.images = Picked(sample.images, [*rows.values()])
        features = sample.policy.image_features([*rows], self.images)
        self.mean = features.mean(0)
        self.features = torch.nn.functional.normalize(features - self.mean, dim=-1)
        means = [mean for tokens in self.parts(sample) if (mean := _mean(tokens)) is not None]
        if not means:
            raise ValueError("visual_dependence: no base caption has a word that says anything")
        self.saturation = max(MIN_SATURATION, torch.tensor(means).quantile(0.9).item())

    def neighbours(self, batch: CaptionBatch) -> Sequence[Image]:
        """The nearest image of the bank that is not the same picture, for each row."""
        features = batch.policy.image_features(batch.image_ids, batch.images) - self.mean
        similarity = torch.nn.functional.normalize(features, dim=-1) @ self.features.T
        similarity[similarity > self.near_duplicate] = -2.0
        return Picked(self.images, similarity.argmax(1).tolist())

    def parts(self, batch: CaptionBatch) -> Parts:
        """Per caption its content tokens with the nats that each brings."""
        if not len(self.features):
            raise RuntimeError("visual_dependence was not prepared: it needs a bank of images")
        policy = batch.policy
        own = policy.log_probs(batch.captions, batch.images)
        masked = policy.log_probs(batch.captions, batch.images, "masked")
        neighbour = policy.log_probs(batch.captions, self.neighbours(batch))
        parts: Parts = []
        for caption, *logps in zip(batch.captions, own, masked, neighbour, strict=True):
            nats, pieces = self.nats(*logps).tolist(), policy.tokens(caption)
            parts.append([(pieces[t].strip(), nats[t]) for t in content_tokens(pieces)])
        return parts

    def nats(self, own: Tensor, masked: Tensor, neighbour: Tensor) -> Tensor:
        """What each token brings, from its log-probabilities (T,) under the three images."""
        evidence = (own - masked).clamp(0, self.max_nats)
        control = (neighbour - masked).clamp(0, self.max_nats)
        gain = (evidence - self.control * control).clamp(min=0)
        return torch.where(own.exp() >= self.plausible, gain, -1.0)

    def __call__(self, batch: CaptionBatch) -> Scores:
        return [self.score(_mean(tokens)) for tokens in self.parts(batch)]

    def score(self, mean: float | None) -> float:
        """The reward of so many nats per content token; the floor where there is none."""
        share = self.floor if mean is None else mean / self.saturation
        return round(max(-1.0, min(1.0, share)) / self.step) * self.step


def _mean(tokens: list[tuple[str, float]]) -> float | None:
    return sum(nats for _, nats in tokens) / len(tokens) if tokens else None


def check(reward: VisualDependence, right: CaptionBatch, wrong: CaptionBatch) -> float:
    return win_rate(reward, right, wrong)
