"""ViZer's mapper h: from a language model's caption states to its own vision tower's output.

A 2-layer MLP, width 256, trained by 1 - cos (arXiv 2510.12931; as far as is known, for no code was
published). A choice of ours: features are centred on their mean over the training images, for a
positives-only cosine is otherwise nearly satisfied by that mean alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cosine_similarity, normalize

HELD = 8  # every eighth pair is kept from training


class Mapper(nn.Module):
    """Caption states (N, D) -> mapped features (N, V), to be compared by direction."""

    mean: torch.Tensor

    def __init__(self, states: int, features: int, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(states, width), nn.GELU(), nn.Linear(width, features))
        self.register_buffer("mean", torch.zeros(features))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        mapped: torch.Tensor = self.layers(states)
        return mapped

    def cosine(self, states: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """(N,) cosine of the mapped states with the centred image features (N, V)."""
        return cosine_similarity(self(states), features - self.mean, dim=-1)

    def fit(
        self,
        states: torch.Tensor,
        features: torch.Tensor,
        steps: int,
        learning_rate: float,
        told: Callable[[float], object] | None = None,
    ) -> float:
        """Minimise 1 - cos over pairs; returns the matching accuracy on pairs kept from training.

        states (N, D), features (N, V): one row per caption and its image, N at least 16. The
        accuracy is the share of (caption, other image) pairs in which the caption is nearer to its
        own image: .5 is chance. `told` is told the loss after each step.
        """
        if len(states) < 2 * HELD:
            raise ValueError(f"the mapper needs {2 * HELD} captions, but there are {len(states)}")
        states, features = states.clone(), features.clone()  # made in inference mode
        held = torch.arange(len(states), device=states.device) % HELD == 0
        self.mean.copy_(features[~held].mean(0))
        optimizer = torch.optim.AdamW(self.layers.parameters(), lr=learning_rate, weight_decay=0.01)
        for _ in range(steps):
            loss = 1 - self.cosine(states[~held], features[~held]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if told is not None:
                told(loss.item())
        return self.matching(states[held], features[held])

    @torch.no_grad()
    def matching(self, states: torch.Tensor, features: torch.Tensor) -> float:
        """Share of (caption, other image) pairs in which the own image is nearer; a tie is half."""
        every = normalize(self(states), dim=-1) @ normalize(features - self.mean, dim=-1).T
        own, other = every.diagonal()[:, None], ~torch.eye(len(every), dtype=torch.bool)
        wins = (own > every).float() + 0.5 * (own == every).float()
        return float(wins[other.to(every.device)].mean())

    @torch.no_grad()
    def variance(self, states: torch.Tensor, features: torch.Tensor) -> float:
        """Variance of the mapped directions across rows as a share of the targets'; 0: collapsed.

        One row per image: (N, D) states and (N, V) features. Directions are unit vectors, whose
        variance is 1 - |mean|².
        """
        spread = [
            1 - normalize(v, dim=-1).mean(0).square().sum()
            for v in (self(states), features - self.mean)
        ]
        return float(spread[0] / spread[1].clamp(min=1e-6))


def kept(path: str | Path, device: torch.device) -> tuple[Mapper, dict[str, Any]]:
    """A mapper that a run has kept, and what its file says of how it was made."""
    known: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
    state = known.pop("mapper")
    first, last = state["layers.0.weight"], state["layers.2.weight"]
    mapper = Mapper(first.shape[1], last.shape[0], first.shape[0])
    mapper.load_state_dict(state)
    return mapper.to(device), known


def taken_up(file: str, features: torch.Tensor) -> tuple[Mapper, str, float]:
    """A mapper that a run kept, how it reads captions, and its matching accuracy.

    features (1, V): the policy's, which it must fit. Raises ValueError in one sentence.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"mapper {file} does not exist")
    mapper, known = kept(path, features.device)
    how = [known[key] for key in ("reading", "pooling", "target") if key in known]
    if how not in (["text"], ["image"], ["loose", "mean", "tower"]):
        raise ValueError(
            f"mapper {file} was made with {', '.join(how)}: the reward reads loose, mean, tower"
        )
    if mapper.mean.shape != features.shape[1:]:
        raise ValueError(f"mapper {file} was made for another model")
    reading = "text" if how == ["text"] else "image"
    return mapper.requires_grad_(False), reading, float(known["matching"])
