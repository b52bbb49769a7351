"""Judges of an audit: rewards, held-out scorer and reference policy score its captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from rewards import Bank, Encoder

from ..config.schema import Run
from ..data.sources import ImageFolder
from ..policy import load
from ..scoring.reference_policy import ReferencePolicy
from ..scoring.reward_functions import RewardFunctions
from .pictures import Pictures

CACHED = 32  # decoded images


@dataclass(frozen=True)
class RunParts:
    """The parts of a run, loaded: the policy has no adapter yet, the rewards are prepared.

    args: TRL's config; images: the training images; heldout: the scorer that no reward uses.
    """

    run: Run
    args: Any
    images: ImageFolder
    reference: ReferencePolicy
    heldout: Encoder
    scoring: RewardFunctions
    bank: Bank


class Judges:
    """Scores captions of the run's images with its rewards, the held-out scorer and the policy."""

    def __init__(self, parts: RunParts) -> None:
        self.parts = parts
        self.load = lru_cache(CACHED)(parts.images.load)
        self.weights = [reward.weight for reward in parts.scoring.rewards]
        self.names = [reward.name for reward in parts.scoring.rewards]
        self.milliseconds = dict.fromkeys(self.names, 0.0)
        self.ends = load.eos_ids(parts.reference.model, parts.reference.processor)

    @property
    def normalised(self) -> bool:
        """Whether training scales each reward in its group before it weighs them."""
        return bool(self.parts.args.multi_objective_aggregation == "normalize_then_sum")

    def tokens(self, caption: str) -> list[int]:
        """The caption as a completion, EOS at its end."""
        ids = self.parts.reference.processor.tokenizer(caption, add_special_tokens=False)[
            "input_ids"
        ]
        return [*ids, self.ends[0]]

    def fits(self, caption: str) -> bool:
        """Whether the policy may speak so long."""
        return len(self.tokens(caption)) <= int(self.parts.args.max_completion_length)

    def score(
        self,
        ids: Sequence[str],
        captions: Sequence[str],
        tokens: Sequence[list[int]],
        size: int,
        view: tuple[str, Any] = ("", None),
    ) -> np.ndarray:
        """(K, rows) scores, NaN where a reward cannot judge; groups of `size` rows.

        view: what is added to the ids, and how each image is then seen.
        """
        named = [i + view[0] for i in ids]
        pictures = Pictures(self.load, ids, view[1])
        batch = self.parts.scoring.batch(named, pictures, captions, tokens)
        groups = [range(i, i + size) for i in range(0, len(captions), size)]
        scores = self.parts.scoring.scores(replace(batch, groups=groups))
        seconds = self.parts.scoring.seconds
        self.milliseconds = {n: 1000 * seconds[n] / len(captions) for n in self.names}
        rows = [[np.nan if v is None else v for v in scores[name]] for name in self.names]
        return np.array(rows, np.float64)

    def heldout(self, ids: Sequence[str], captions: Sequence[str]) -> np.ndarray:
        """(rows,) cosines under the held-out scorer."""
        encoder = self.parts.heldout
        images = encoder.image_features(ids, Pictures(self.load, ids))
        return (images * encoder.text_features(captions)).sum(-1).cpu().double().numpy()

    def log_probs(self, ids: Sequence[str], captions: Sequence[str]) -> np.ndarray:
        """(rows,) log-probability of each caption's tokens under the frozen policy, in nats."""
        pairs = list(dict.fromkeys(zip(ids, captions, strict=True)))  # each read once
        pictures = Pictures(self.load, [image_id for image_id, _ in pairs])
        told = self.parts.reference.log_probs([caption for _, caption in pairs], pictures)
        known = {pair: float(t.sum()) for pair, t in zip(pairs, told, strict=True)}
        return np.array([known[pair] for pair in zip(ids, captions, strict=True)])
