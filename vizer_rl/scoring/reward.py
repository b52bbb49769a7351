"""A reward in use: name, weight, what computes it, and what it declares of itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from rewards import CaptionBatch, Scorer
from rewards.lib.openings import declared_opening, without_opening

from ..config.schema import Run
from ..errors import UserError


@dataclass
class Reward:
    """A reward in use: its name, its weight in the sum (0 = only logged) and what computes it."""

    name: str
    weight: float
    score: Scorer

    def declared(self, name: str, default: Any) -> Any:
        """What the reward declares by this name (the list: rewards/__init__.py), or the default."""
        return getattr(self.score, name, default)

    @property
    def gates(self) -> bool:
        """Whether no content reward judges a caption that it scores below 0, which ranks last."""
        return bool(self.declared("gates", False)) and self.weight > 0

    @property
    def content(self) -> bool:
        """Whether it judges what a caption says, not how; the gate leaves a guard alone."""
        return bool(self.declared("content", True)) and not self.declared("gates", False)

    @property
    def opening(self) -> str:
        """The text with which it wants captions to begin, "" for none."""
        return str(self.declared("opening", "")) if self.weight > 0 else ""

    @property
    def is_async(self) -> bool:
        """Whether its scores have to be awaited."""
        call = type(self.score).__call__
        return inspect.iscoroutinefunction(self.score) or inspect.iscoroutinefunction(call)

    def read(self, batch: CaptionBatch, opening: str) -> CaptionBatch:
        """The batch as this reward reads it: without the run's opening, unless it is its own."""
        if not opening or self.declared("opening", ""):
            return batch
        return replace(batch, captions=[without_opening(c, opening) for c in batch.captions])


def opening_of(rewards: Iterable[Reward]) -> str:
    """The opening that rewards of a run declare, "" for none."""
    return next((reward.opening for reward in rewards if reward.opening), "")


def run_opening(run: Run) -> str:
    """The opening that a run's rewards declare; UserError where one of them cannot be built."""
    try:
        return declared_opening(run.rewards)
    except ValueError as error:
        raise UserError(f"rewards of run '{run.name}': {error}") from error
