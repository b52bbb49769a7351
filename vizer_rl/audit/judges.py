"""Judges of an audit: rewards, held-out scorer and reference policy score its captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from rewards import Bank, Encoder
from rewards.lib.chunks import caption_cosines
from rewards.lib.images import Picked

from ..data.lazy import LazyImages
from ..data.perturb import View
from ..data.sources import ImageFolder
from ..policy import load
from ..policy.shared_prefix.vision_cache import VisionCache
from ..scoring.reference_policy import ReferencePolicy
from ..scoring.reward_functions import RewardFunctions
from .opening_attacks import attacks_for

Perturbation = tuple[str, View | None]  # suffix of the image ids, what is done to each image
UNCHANGED: Perturbation = ("", None)
CACHED_IMAGES = 32  # decoded
TOGETHER = 16  # images whose captions are read at a time


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
        self.attacks = attacks_for(parts.scoring.opening)
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
        return self.by_image(ids, captions, self._log_probs)

    def _log_probs(
        self, ids: Sequence[str], captions: Sequence[str], images: Sequence[Image]
    ) -> list[float]:
        log_probs = self.parts.reference.log_probs(captions, images, packed=True)
        return [float(t.sum()) for t in log_probs]

    def by_image(
        self,
        ids: Sequence[str],
        captions: Sequence[str],
        values: Callable[[Sequence[str], Sequence[str], Sequence[Image]], list[float]],
    ) -> np.ndarray:
        """(rows,) values(ids, captions, images) of the different rows, TOGETHER images at a time.

        Captions of one image stand together and have the same object as image: they share a pass.
        """
        rows = groupby(sorted({*zip(ids, captions, strict=True)}), lambda row: row[0])
        groups, result = [list(group) for _, group in rows], dict[tuple[str, str], float]()
        for start in range(0, len(groups), TOGETHER):
            chunk = groups[start : start + TOGETHER]
            images = self.images([group[0][0] for group in chunk])
            shared = Picked(images, [k for k, group in enumerate(chunk) for _ in group])
            own = [row for group in chunk for row in group]
            names, texts = [name for name, _ in own], [text for _, text in own]
            result |= zip(own, values(names, texts, shared), strict=True)
        return np.array([result[row] for row in zip(ids, captions, strict=True)], float)
