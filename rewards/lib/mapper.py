"""Vision-language mapper h of ViZer: a language model's caption states to its vision features.

A 2-layer MLP, width 256, trained by 1 - cos (arXiv 2510.12931; as far as is known, for no code was
published). A choice of ours: features are centred on their mean over the training images, for a
positives-only cosine is otherwise nearly satisfied by that mean alone.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cosine_similarity, normalize

from . import disk_cache

HELD = 8  # every eighth pair is kept from training
COLLAPSED = 0.05  # variance of mapped directions, as a share of the targets': below, it is noise


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
        progress: Callable[[float], object] | None = None,
    ) -> float:
        """Minimise 1 - cos over pairs; returns the matching accuracy on pairs kept from training.

        states (N, D), features (N, V): one row per caption and its image, N at least 16. The
        accuracy is the share of (caption, other image) pairs in which the caption is nearer to its
        own image: .5 is chance. `progress` takes the loss after each step.
        """
        if len(states) < 2 * HELD:
            raise ValueError(
                f"the mapper needs {2 * HELD} captions, but there are {len(states)}: "
                "give it more images"
            )
        states, features = states.clone(), features.clone()  # out of inference mode
        held = torch.arange(len(states), device=states.device) % HELD == 0
        self.mean.copy_(features[~held].mean(0))
        optimizer = torch.optim.AdamW(self.layers.parameters(), lr=learning_rate, weight_decay=0.01)
        for _ in range(steps):
            loss = 1 - self.cosine(states[~held], features[~held]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if progress is not None:
                progress(loss.item())
        return self.matching(states[held], features[held])

    @torch.no_grad()
    def matching(self, states: torch.Tensor, features: torch.Tensor) -> float:
        """Share of (caption, other image) pairs in which the own image is nearer; a tie is half."""
        cosines = normalize(self(states), dim=-1) @ normalize(features - self.mean, dim=-1).T
        own, other = cosines.diagonal()[:, None], ~torch.eye(len(cosines), dtype=torch.bool)
        wins = (own > cosines).float() + 0.5 * (own == cosines).float()
        return float(wins[other.to(cosines.device)].mean())

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


def fit_mapper(
    states: torch.Tensor,
    features: torch.Tensor,
    *,
    width: int,
    steps: int,
    learning_rate: float,
    remedy: str,
    progress: Callable[[float], object] | None = None,
) -> tuple[Mapper, float, float]:
    """A mapper fitted to pairs, its matching accuracy and its variance; the same pairs, the same.

    states (N, D), features (N, V), `steps`, `learning_rate` and `progress` as in `Mapper.fit`.
    Raises ValueError where the mapper has collapsed; `remedy`: what the sentence advises then.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mapper = Mapper(states.shape[1], features.shape[1], width).to(states.device)
    matching = mapper.fit(states, features, steps, learning_rate, progress)
    variance = mapper.variance(states, features)
    if variance < COLLAPSED:
        raise ValueError(
            f"the mapper has collapsed: the directions it gives to {len(states)} images have "
            f"{variance:.3f} of the variance of the images' own (at least {COLLAPSED} is "
            f"needed); {remedy}"
        )
    return mapper, matching, variance


def keep(path: Path, mapper: Mapper, **how: Any) -> None:
    """Write a mapper and how it was trained, with a checksum, whole or not at all; OSError."""
    entries = {"mapper": mapper.state_dict(), **how}
    content = BytesIO()
    torch.save(entries | {"checksum": _checksum(entries)}, content)
    disk_cache.replace(path, content.getvalue())


def kept(path: str | Path, device: torch.device) -> tuple[Mapper, dict[str, Any]]:
    """A mapper that a run has kept, and the other entries of its file: how it was trained.

    Raises ValueError in one sentence where the file is damaged, or holds no mapper.
    """
    try:
        entries: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
        checksum = entries.pop("checksum", None)  # of before there was one, there is none
        if checksum not in (None, _checksum(entries)):
            raise ValueError("it is not what was written")
        weights = entries.pop("mapper")
        first, last = weights["layers.0.weight"], weights["layers.2.weight"]
        mapper = Mapper(first.shape[1], last.shape[0], first.shape[0])
        mapper.load_state_dict(weights)
    except Exception as error:  # on damaged bytes torch raises almost anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"mapper {path} cannot be read: {reason:.200}") from error
    return mapper.to(device), entries


def _checksum(entries: dict[str, Any]) -> str:
    weights = {name: x.cpu().numpy().tobytes() for name, x in entries["mapper"].items()}
    how = {key: value for key, value in entries.items() if key != "mapper"}
    return blake2b(repr((weights, how)).encode(), digest_size=16).hexdigest()


def taken_up(file: str, features: torch.Tensor) -> tuple[Mapper, str, bool, float]:
    """A frozen mapper that a run kept: (mapper, reading, end, matching accuracy).

    reading: "text" or "image", how captions are read for it; end: whether the end token's state is
    pooled with the others, as rewards do and ViZer does not. features (1, V): the policy's, which
    it must fit. Raises ValueError in one sentence.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"mapper {file} does not exist")
    mapper, entries = kept(path, features.device)
    how = [entries[key] for key in ("reading", "pooling", "target") if key in entries]
    if how not in (["text"], ["image"], ["loose", "mean", "tower"]):
        raise ValueError(
            f"mapper {file} was made with {', '.join(how)}: the reward reads loose, mean, tower"
        )
    if mapper.mean.shape != features.shape[1:]:
        raise ValueError(f"mapper {file} was made for another model")
    reading = "text" if how == ["text"] else "image"
    end = bool(entries.get("end", how != ["loose", "mean", "tower"]))
    return mapper.requires_grad_(False), reading, end, float(entries["matching"])
