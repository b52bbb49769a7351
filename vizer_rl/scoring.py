"""The one adapter between TRL and rewards: a CaptionBatch goes in, reward columns come out."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from PIL.Image import Image

from rewards import Bank, CaptionBatch, Encoder, FrozenPolicy, Scores

from .config import UserError


class RewardError(UserError):
    """A reward broke its contract: which, how, and on which caption."""


@dataclass
class Reward:
    """A reward in use: its name, its weight in the sum (0 = only logged) and what computes it."""

    name: str
    weight: float
    score: Callable[[CaptionBatch], Scores]

    @property
    def floor(self) -> float:
        """What a caption without end gets: the worst score, never None."""
        return float(getattr(self.score, "floor", 0.0))


class Scoring:
    """Scores completions with every reward of a run; one `CaptionBatch` per rollout is shared."""

    def __init__(
        self,
        rewards: Sequence[Reward],
        encoders: Callable[[str | None], Encoder],
        policy: FrozenPolicy,
        eos_ids: Sequence[int],
        num_generations: int,
    ) -> None:
        self.rewards, self.encoders, self.policy = list(rewards), encoders, policy
        self.eos_ids, self.num_generations = set(eos_ids), num_generations
        self._asked: Any = None
        self._batch: CaptionBatch | None = None

    def prepare(self, bank: Bank) -> None:
        """Let every reward that wants to prepare itself do so, before training."""
        for reward in self.rewards:
            if hasattr(reward.score, "prepare"):
                try:
                    reward.score.prepare(bank)
                except Exception as error:
                    raise RewardError(f"reward {reward.name!r}: {_what(error)}") from error

    def batch(
        self,
        image_ids: Sequence[str],
        images: Sequence[Image],
        captions: Sequence[str],
        completion_ids: Sequence[list[int]],
    ) -> CaptionBatch:
        """These completions, in groups of `num_generations`."""
        size = self.num_generations
        return CaptionBatch(
            image_ids=list(image_ids),
            images=images,
            captions=[c.strip() for c in captions],
            groups=[range(i, i + size) for i in range(0, len(captions), size)],
            completion_ids=[list(ids) for ids in completion_ids],
            encoders=self.encoders,
            policy=self.policy,
        )

    def functions(self) -> list[Callable[..., list[float | None]]]:
        """One reward function per reward, as TRL calls them; `__name__` is the reward's name."""
        return [self._function(reward) for reward in self.rewards]

    def _function(self, reward: Reward) -> Callable[..., list[float | None]]:
        def function(
            completions: list[Any], completion_ids: list[list[int]], **columns: Any
        ) -> list[float | None]:
            if self._asked is not completion_ids or self._batch is None:
                texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
                self._batch = self.batch(
                    columns["image_id"], columns["image"], texts, completion_ids
                )
                self._asked = completion_ids
            return self.score(reward, self._batch)

        function.__name__ = reward.name
        return function

    def score(self, reward: Reward, batch: CaptionBatch) -> list[float | None]:
        """The reward's scores, checked; a caption that did not come to its end gets the floor.

        Raises RewardError, with the reward's name, where the reward raises or returns what is no
        finite number, or not one per caption.
        """
        try:
            scores = list(reward.score(batch))
        except Exception as error:
            raise RewardError(
                f"reward {reward.name!r} failed on a batch that begins with image "
                f"{batch.image_ids[0]!r}, caption {batch.captions[0]!r}: {_what(error)}"
            ) from error
        if len(scores) != len(batch.captions):
            raise RewardError(
                f"reward {reward.name!r} returned {len(scores)} scores for "
                f"{len(batch.captions)} captions: it must return one each"
            )
        for row, value in enumerate(scores):
            number = value is None or (isinstance(value, Real) and math.isfinite(value))
            if not number:
                raise RewardError(
                    f"reward {reward.name!r} returned {value!r} for image "
                    f"{batch.image_ids[row]!r}, caption {batch.captions[row]!r}: it must return a "
                    f"finite number, or None where it cannot judge"
                )
        ended = [bool(ids) and ids[-1] in self.eos_ids for ids in batch.completion_ids]
        return [
            (None if value is None else float(value)) if end else reward.floor
            for value, end in zip(scores, ended, strict=True)
        ]


def _what(error: Exception) -> str:
    """The error and where it was raised: a reward's author needs the line."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({at.filename}:{at.lineno})"
