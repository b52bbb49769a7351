"""Does the caption find its own image among look-alikes?

    R = log softmax_j( s cos(caption, image_j) ) at the right image, floored

over the right image, its `hard` nearest neighbours in a frozen bank of the training images and
`random` others. The scale s is calibrated before training so that the frozen policy's captions
find their image with mean probability `base_probability`; near-duplicates of the image are no
negatives. Dessì et al. 2023 (DiscriTune, arXiv 2304.01662) with a bank, calibration and floor.
Cost: one text encoding per caption and a matrix product. Hack: rare details; keep a guard.
"""

from __future__ import annotations

import torch

from rewards import Bank, CaptionBatch, Scores, win_rate

RATE = 0.95


class SelfRetrieval:
    """Log-probability of the right image among hard and random negatives, given the caption."""

    def __init__(
        self,
        *,
        encoder: str | None = None,
        hard: int = 32,
        random: int = 32,
        near_duplicate: float = 0.95,
        base_probability: float = 0.45,
        floor: float = -6.0,
        step: float = 0.05,
    ) -> None:
        """`hard`, `random`: negatives per image; `near_duplicate`: image cosine above which a
        neighbour counts as the same picture; `floor`: nats; `step`: differences below are noise."""
        self.encoder, self.hard, self.random = encoder, hard, random
        self.near_duplicate, self.base_probability = near_duplicate, base_probability
        self.floor, self.step = floor, step
        self.range = (floor, 0.0)
        self.scale = 0.0
        self.bank = torch.empty(0)

    def prepare(self, bank: Bank) -> None:
        """Encode the bank and choose the scale by bisection on the base policy's captions."""
        if len(bank.image_ids) <= self.hard + self.random:
            raise ValueError(
                f"self_retrieval wants {self.hard} hard and {self.random} random negatives but "
                f"there are only {len(bank.image_ids)} training images: lower hard and random"
            )
        self.bank = bank.sample.encoders(self.encoder).image_features(bank.image_ids, bank.images)
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(self.bank), generator=generator)[: self.random]
        self.others = self.bank[chosen.to(self.bank.device)]
        right, wrong = self._cosines(bank.sample)
        low, high = 0.1, 500.0
        for _ in range(40):
            self.scale = (low * high) ** 0.5
            found = self._log_probability(right, wrong).exp().mean().item()
            low, high = (self.scale, high) if found < self.base_probability else (low, self.scale)

    def _cosines(self, batch: CaptionBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Caption with its image (N,), and with each of its negatives (N, hard + random)."""
        clip = batch.encoders(self.encoder)
        images = clip.image_features(batch.image_ids, batch.images)
        captions = clip.text_features(batch.captions)
        alike = images @ self.bank.T
        none = -float("inf")
        alike[alike > self.near_duplicate] = none  # the image itself, and its doubles
        closest = alike.topk(self.hard, dim=1)
        near = torch.einsum("nd,nkd->nk", captions, self.bank[closest.indices])
        near = near.masked_fill(closest.values == none, none)
        same = images @ self.others.T > self.near_duplicate
        far = (captions @ self.others.T).masked_fill(same, none)
        return (images * captions).sum(-1), torch.cat([near, far], 1)

    def _log_probability(self, right: torch.Tensor, wrong: torch.Tensor) -> torch.Tensor:
        logits = self.scale * torch.cat([right[:, None], wrong], 1)
        return logits[:, 0] - logits.logsumexp(1)

    def __call__(self, batch: CaptionBatch) -> Scores:
        if not self.scale:
            raise RuntimeError("self_retrieval was not prepared: it needs a bank of images")
        score = self._log_probability(*self._cosines(batch)).clamp(min=self.floor)
        return ((score / self.step).round() * self.step).tolist()


def check(reward: SelfRetrieval, right: CaptionBatch, wrong: CaptionBatch) -> float:
    return win_rate(reward, right, wrong)
