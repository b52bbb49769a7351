"""What a run is made of: policy, encoders, rewards prepared on the run's images.

Training and the audit before it need the same parts, so they are put together here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

import rewards as reward_files
from rewards import Bank, Encoder

from . import policy
from .config import Run
from .data import ImageFolder
from .encoders import Encoders
from .scoring import Reward, Scoring

CACHE = Path("data/cache")
BANK, SAMPLED = 4096, 512  # images that rewards prepare with, and how many of them are captioned


@dataclass(frozen=True)
class Parts:
    """The parts of a run, loaded: the policy has no adapter yet, the rewards are prepared.

    args: TRL's config; images: the training images; heldout: the scorer that no reward uses.
    """

    run: Run
    args: Any
    images: ImageFolder
    model: Any
    processor: Any
    frozen: policy.Frozen
    heldout: Encoder
    scoring: Scoring
    bank: Bank


def load(run: Run, args: Any, images: ImageFolder) -> Parts:
    """Load policy, scorers and rewards, and let the rewards prepare themselves."""
    model, processor = policy.load(run.family, run.policy)
    frozen = policy.Frozen(model, processor, run.policy.model)
    encoders = Encoders(run.scorer.train, policy.device(), _scorer_dtype())
    heldout = encoders(run.scorer.heldout)
    eos = policy.eos_ids(model, processor)
    scoring = Scoring(rewards_of(run), encoders, frozen, eos, args.num_generations)
    ready = bank(run, model, processor, scoring, images, args.max_completion_length)
    scoring.prepare(ready)
    return Parts(run, args, images, model, processor, frozen, heldout, scoring, ready)


def rewards_of(run: Run) -> list[Reward]:
    """The run's rewards with their weights, built from their parameters."""
    made = []
    for name, told in run.rewards.items():
        parameters = {key: value for key, value in told.items() if key != "weight"}
        made.append(Reward(name, told["weight"], reward_files.make(name, parameters)))
    return made


class Lazy(Sequence[Image]):
    """Images of a folder by number, decoded when indexed and not before."""

    def __init__(self, folder: ImageFolder, ids: Sequence[str]) -> None:
        self.folder, self.ids = folder, list(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        return self.folder.load(self.ids[index])


def bank(
    run: Run, model: Any, processor: Any, scoring: Scoring, images: ImageFolder, max_new_tokens: int
) -> Bank:
    """Training images for the rewards to prepare with, and the base's own captions of some."""
    ids = images.ids
    if len(ids) > BANK:
        ids = sorted(random.Random(run.seed).sample(ids, BANK))
    chosen = sorted(random.Random(run.seed).sample(ids, min(SAMPLED, len(ids))))
    pictures = Lazy(images, chosen)
    said = policy.caption(
        model,
        processor,
        pictures,
        run.data.prompt,
        max_new_tokens=max_new_tokens,
        temperature=1.0,
    )
    sample = scoring.batch(chosen, pictures, [c.text for c in said], [c.ids for c in said])
    return Bank(ids, Lazy(images, ids), sample, CACHE)


def _scorer_dtype() -> torch.dtype:
    return torch.float16 if torch.cuda.is_available() else torch.float32
