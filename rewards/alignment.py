"""The policy's internal vision-language alignment: ViZer's mapper, used as a reward.

A 2-layer MLP h (width 256) maps the frozen policy's caption states to the output of its own vision
tower; the reward is the cosine of h(states) with the image's features. h is trained before RL on
captions that the policy itself sampled (ViZer_G, arXiv 2510.12931: no label), loss 1 - cos.
Two choices of ours: the caption is read without the image, so that only its words can raise the
score, and features are centred on the bank's mean, so that h cannot collapse to that mean.
Policy and mapper are frozen. Cost: one text-only forward pass of the policy per caption.
"""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import nn

from rewards import Bank, CaptionBatch, Scores, win_rate

RATE = 0.75


class Alignment:
    """Cosine of the mapped caption states with the frozen policy's own vision features."""

    range = (-1.0, 1.0)
    floor = -1.0

    def __init__(
        self, *, width: int = 256, steps: int = 400, learning_rate: float = 2e-3, step: float = 0.01
    ) -> None:
        """`width`, `steps`, `learning_rate`: of the mapper; `step`: differences below are noise."""
        self.width, self.steps, self.learning_rate, self.step = width, steps, learning_rate, step
        self.mapper: nn.Module | None = None
        self.mean = torch.empty(0)

    def prepare(self, bank: Bank) -> None:
        """Train the mapper on the base policy's own captions, or read it from the cache."""
        sample, policy = bank.sample, bank.sample.policy
        features = policy.image_features(sample.image_ids, sample.images)
        states = policy.caption_states(sample.captions)
        self.mean = features.mean(0)
        told = f"{policy.key}{self.width}{self.steps}{self.learning_rate}{sample.image_ids}"
        told += "\n".join(sample.captions)
        path = bank.cache / f"alignment-{blake2b(told.encode(), digest_size=8).hexdigest()}.pt"
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.mapper = nn.Sequential(
                nn.Linear(states.shape[1], self.width),
                nn.GELU(),
                nn.Linear(self.width, features.shape[1]),
            ).to(states.device)
        if path.exists():
            self.mapper.load_state_dict(torch.load(path, weights_only=True))
        else:
            self.fit(states, features)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self.mapper.state_dict(), path)
        self.mapper.requires_grad_(False)

    def fit(self, states: torch.Tensor, features: torch.Tensor) -> None:
        """Minimise 1 - cos over pairs of caption states (N, D) and image features (N, V)."""
        assert self.mapper is not None
        states, features = states.clone(), features.clone()  # made in inference mode
        optimizer = torch.optim.AdamW(
            self.mapper.parameters(), lr=self.learning_rate, weight_decay=0.01
        )
        for _ in range(self.steps):
            loss = 1 - self.cosine(states, features).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def cosine(self, states: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        assert self.mapper is not None
        return torch.cosine_similarity(self.mapper(states), features - self.mean, dim=-1)

    def __call__(self, batch: CaptionBatch) -> Scores:
        if self.mapper is None:
            raise RuntimeError("alignment was not prepared: its mapper needs the base's captions")
        features = batch.policy.image_features(batch.image_ids, batch.images)
        score = self.cosine(batch.policy.caption_states(batch.captions), features)
        return ((score / self.step).round() * self.step).tolist()


def check(reward: Alignment, right: CaptionBatch, wrong: CaptionBatch) -> float:
    return win_rate(reward, right, wrong)
