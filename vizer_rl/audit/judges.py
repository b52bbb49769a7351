"""Judges of an audit: rewards, held-out scorer and reference policy score its captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rewards import Bank, Encoder
from rewards.lib.chunks import caption_cosines

from ..data.lazy import LazyImages
from ..data.perturb import View
from ..data.sources import ImageFolder
from ..policy import load
from ..policy.shared_prefix.vision_cache import VisionCache
from ..scoring.reference_policy import ReferencePolicy
from ..scoring.reward_functions import RewardFunctions

Perturbation = tuple[str, View | None]  # suffix of the image ids, what is done to each image
UNCHANGED: Perturbation = ("", None)
CACHED_IMAGES = 32  # decoded


@dataclass(frozen=True)
class RunParts:
    """The parts of a run, loaded: the policy has no adapter yet, the rewards are prepared.

    aggregation: TRL's `multi_objective_aggregation`; scorers: the run file's `scorer`; images: the
    training images; drawn_scenes: whether they are the built-in ones; heldout: the scorer that no
    reward uses; vision_cache: the training's, None where a group does not share its prompt.
    """

    name: str
    directory: Path
    seed: int
    prompt: str
    temperature: float
    max_completion_length: int
    aggregation: str
    scorers: dict[str, Any]
    drawn_scenes: bool
    images: ImageFolder
    reference: ReferencePolicy
    heldout: Encoder
    scoring: RewardFunctions
    bank: Bank
    vision_cache: VisionCache | None


class Judges:
    """Scores captions of the run's images with its rewards, held-out scorer, reference policy."""

    def __init__(self, parts: RunParts) -> None:
        self.parts = parts
        self.load = lru_cache(CACHED_IMAGES)(parts.images.load)
        self.weights = [reward.weight for reward in parts.scoring.rewards]
        self.names = [reward.name for reward in parts.scoring.rewards]
        self.milliseconds = dict.fromkeys(self.names, 0.0)
        policy = parts.reference.model, parts.reference.processor
        self.eos_ids, self.end_id = load.eos_ids(*policy), load.end_id(*policy)

    @property
    def normalised(self) -> bool:
        """Whether training scales each reward in its group before it weighs them."""
        return self.parts.aggregation == "normalize_then_sum"

    def images(self, ids: Sequence[str], view: View | None = None) -> LazyImages:
        """The image of each id, a few of them cached."""
        return LazyImages(self.load, ids, view)

    def tokenize(self, caption: str) -> list[int]:
        """The caption as a completion, with the end that the policy writes."""
        tokenizer = self.parts.reference.processor.tokenizer
        return [*tokenizer(caption, add_special_tokens=False)["input_ids"], self.end_id]

    def fits(self, caption: str) -> bool:
        """Whether the caption is no longer than the policy's longest completion."""
        return len(self.tokenize(caption)) <= self.parts.max_completion_length

    def score(
        self,
        ids: Sequence[str],
        captions: Sequence[str],
        completion_ids: Sequence[list[int]],
        group_size: int,
        perturbation: Perturbation = UNCHANGED,
    ) -> np.ndarray:
        """(K, rows) scores under every reward, NaN where it cannot judge; groups of group_size."""
        suffix, view = perturbation
        batch = self.parts.scoring.batch(
            [i + suffix for i in ids], self.images(ids, view), captions, completion_ids
        )
        groups = [range(i, i + group_size) for i in range(0, len(captions), group_size)]
        scores = self.parts.scoring.scores(replace(batch, groups=groups))
        seconds = self.parts.scoring.seconds
        self.milliseconds = {n: 1000 * seconds[n] / len(captions) for n in self.names}
        rows = [[np.nan if v is None else v for v in scores[name]] for name in self.names]
        return np.array(rows, np.float64)

    def heldout_scores(self, ids: Sequence[str], captions: Sequence[str]) -> np.ndarray:
        """(rows,) cosines under the held-out scorer."""
        cosines = caption_cosines(self.parts.heldout, ids, self.images(ids), captions)
        return cosines.cpu().double().numpy()

    def log_probs(self, ids: Sequence[str], captions: Sequence[str]) -> np.ndarray:
        """(rows,) log-probability of each caption's tokens under the reference policy, in nats."""
        pairs = list(dict.fromkeys(zip(ids, captions, strict=True)))  # without repetition
        images = self.images([image_id for image_id, _ in pairs])
        log_probs = self.parts.reference.log_probs([caption for _, caption in pairs], images)
        totals = {pair: float(t.sum()) for pair, t in zip(pairs, log_probs, strict=True)}
        return np.array([totals[pair] for pair in zip(ids, captions, strict=True)])
