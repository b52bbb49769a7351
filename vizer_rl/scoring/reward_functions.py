"""The one adapter between TRL and rewards: a CaptionBatch goes in, reward columns come out."""

from __future__ import annotations

import asyncio
import inspect
import math
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

import rewards as reward_files
from rewards import Bank, CaptionBatch, Encoder, ReferencePolicy, Scorer

from ..errors import ImageError, UserError
from .aggregation import NoiseWatch, contributions, shares

Column = list[float | None]


class RewardError(UserError):
    """A reward broke its contract: which, how, and on which caption."""


@dataclass
class Reward:
    """A reward in use: its name, its weight in the sum (0 = only logged) and what computes it."""

    name: str
    weight: float
    score: Scorer

    def declared(self, what: str, default: Any) -> Any:
        """What the reward declares by this name (the list: rewards/__init__.py), or the default."""
        return getattr(self.score, what, default)

    @property
    def floor(self) -> float:
        """What a caption without end gets: the worst score, never None."""
        return float(self.declared("floor", 0.0))

    @property
    def gates(self) -> bool:
        """Whether a caption that it scores below 0 gets every content reward's floor."""
        return bool(self.declared("gates", False))

    @property
    def content(self) -> bool:
        """Whether it judges what a caption says, not how; the gate leaves a guard alone."""
        return bool(self.declared("content", True)) and not self.gates

    @property
    def waits(self) -> bool:
        """Whether it is async."""
        call = type(self.score).__call__
        return inspect.iscoroutinefunction(self.score) or inspect.iscoroutinefunction(call)


class RewardFunctions:
    """Scores completions with every reward of a run; one `CaptionBatch` per rollout is shared."""

    def __init__(
        self,
        rewards: Sequence[Reward],
        encoders: Callable[[str | None], Encoder],
        policy: ReferencePolicy,
        eos_ids: Sequence[int],
        num_generations: int,
        prompt: str = "",
    ) -> None:
        self.rewards, self.encoders, self.policy = list(rewards), encoders, policy
        self.eos_ids, self.num_generations = set(eos_ids), num_generations
        self.prompt = prompt
        self.tell: Callable[[str], object] = lambda sentence: None  # where to say what is amiss
        judges = [r for r in self.rewards if r.content and r.weight]
        self._noise = NoiseWatch(
            [r.name for r in judges], [float(r.declared("step", 0.0)) for r in judges]
        )
        self._seconds: dict[str, float] = {}
        self._asked: Any = None
        self._scores: dict[str, Column] = {}
        self._loop: asyncio.Runner | None = None

    def prepare(self, bank: Bank) -> None:
        """Let every reward that wants to prepare itself do so, before training."""
        for reward in self.rewards:
            if hasattr(reward.score, "prepare"):
                try:
                    reward.score.prepare(bank)
                except ImageError:
                    raise
                except Exception as error:
                    raise RewardError(f"reward {reward.name!r}: {_what(error)}") from error

    def save(self, folder: Path) -> None:
        """Let every reward that has learnt something write it to this folder."""
        for reward in self.rewards:
            if hasattr(reward.score, "save"):
                folder.mkdir(parents=True, exist_ok=True)
                reward.score.save(folder)

    def batch(
        self,
        image_ids: Sequence[str],
        images: Sequence[Image],
        captions: Sequence[str],
        completion_ids: Sequence[list[int]],
    ) -> CaptionBatch:
        """These completions; neighbours of one image, up to `num_generations`, are a group."""
        return CaptionBatch(
            image_ids=list(image_ids),
            images=images,
            captions=[c.strip() for c in captions],
            groups=list(_groups(image_ids, self.num_generations)),
            completion_ids=[list(ids) for ids in completion_ids],
            encoders=self.encoders,
            policy=self.policy,
            prompt=self.prompt,
            ended=[bool(ids) and ids[-1] in self.eos_ids for ids in completion_ids],
        )

    def functions(self) -> list[Callable[..., Column]]:
        """One reward function per reward, as TRL calls them; `__name__` is the reward's name."""
        return [self._function(reward) for reward in self.rewards]

    def _function(self, reward: Reward) -> Callable[..., Column]:
        def function(
            completions: list[Any], completion_ids: list[list[int]], **columns: Any
        ) -> Column:
            if self._asked is not completion_ids:  # the first reward of this rollout: score all
                texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
                told = self.batch(columns["image_id"], columns["image"], texts, completion_ids)
                self._scores, self._asked = self.scores(told), completion_ids
            return self._scores[reward.name]

        function.__name__ = reward.name
        return function

    def scores(self, batch: CaptionBatch) -> dict[str, Column]:
        """Every reward's scores by name: checked, floors and gate applied; async ones together.

        A caption that did not come to its end gets each reward's floor, one that the gate refuses
        every content reward's. Raises RewardError, with the reward's name, where a reward raises or
        returns what is no finite number, or not one per caption.
        """
        raw = {r.name: self._timed(r, batch) for r in self.rewards if not r.waits}
        raw |= self._together([r for r in self.rewards if r.waits], batch)
        scores = {r.name: _checked(r, raw[r.name], batch) for r in self.rewards}
        ended = batch.ended or [True] * len(batch.captions)
        gates = [scores[r.name] for r in self.rewards if r.gates]
        shut = [any((value or 0.0) < 0 for value in row) for row in zip(*gates, strict=True)]
        for r in self.rewards:
            floored = [
                not end or (r.content and no)
                for end, no in zip(ended, shut or [False] * len(ended), strict=True)
            ]
            column = zip(scores[r.name], floored, strict=True)
            scores[r.name] = [r.floor if low else value for value, low in column]
        return scores

    @property
    def seconds(self) -> dict[str, float]:
        """How long each reward took over the last batch, by name."""
        return dict(self._seconds)

    def weighted(self, scores: dict[str, Column]) -> list[float]:
        """The weighted sum per caption; None counts 0."""
        columns = [[r.weight * (v or 0.0) for v in scores[r.name]] for r in self.rewards]
        return [sum(row) for row in zip(*columns, strict=True)]

    def measured(self, rewards_NK: torch.Tensor, aggregation: str, scale: str) -> dict[str, float]:
        """What to log of this rollout: every reward's share, time and own notes.

        rewards_NK: the raw rewards of all devices, NaN for None, in the order of `rewards`.
        """
        weights = torch.tensor([r.weight for r in self.rewards])
        told: dict[str, float] = {}
        parts = contributions(rewards_NK.cpu(), weights, self.num_generations, aggregation, scale)
        for reward, share in zip(self.rewards, shares(parts).tolist(), strict=True):
            name = f"reward/{reward.name}"
            told[f"{name}/share"] = share
            told[f"time/{name}"] = self._seconds.get(reward.name, 0.0)
            if hasattr(reward.score, "notes"):
                told |= {f"{name}/{key}": float(v) for key, v in reward.score.notes().items()}
        judges = [k for k, r in enumerate(self.rewards) if r.content and r.weight]
        for sentence in self._noise.look(rewards_NK[:, judges], self.num_generations):
            self.tell(sentence)
        return told

    def _timed(self, reward: Reward, batch: CaptionBatch) -> Any:
        began = time.monotonic()
        try:
            return reward.score(batch)
        except ImageError:
            raise  # an image that has gone: says it all
        except Exception as error:
            raise _failed(reward, batch, error) from error
        finally:
            self._seconds[reward.name] = time.monotonic() - began

    def _together(self, waiting: list[Reward], batch: CaptionBatch) -> dict[str, Any]:
        async def one(reward: Reward) -> Any:
            began = time.monotonic()
            try:
                found: Any = reward.score(batch)
                return await found
            except ImageError:
                raise
            except Exception as error:
                raise _failed(reward, batch, error) from error
            finally:
                self._seconds[reward.name] = time.monotonic() - began

        async def every() -> list[Any]:
            return await asyncio.gather(*map(one, waiting))

        if not waiting:
            return {}
        if self._loop is None:  # one for the whole run: a reward may keep a connection open
            self._loop = asyncio.Runner()
            weakref.finalize(self, self._loop.close)
        return dict(zip([r.name for r in waiting], self._loop.run(every()), strict=True))


def _groups(image_ids: Sequence[str], most: int) -> Iterable[range]:
    start = 0
    for at in range(1, len(image_ids) + 1):
        if at == len(image_ids) or at - start == most or image_ids[at] != image_ids[start]:
            yield range(start, at)
            start = at


def _checked(reward: Reward, given: Any, batch: CaptionBatch) -> Column:
    """The scores as plain numbers, or RewardError that names what is wrong with them."""
    if isinstance(given, str | bytes | dict) or not hasattr(given, "__iter__"):
        kind = type(given).__name__
        raise RewardError(
            f"reward {reward.name!r} returned {kind} {given!r:.60}: it must return a sequence of "
            "scores, one for each caption"
        )
    given = given.tolist() if isinstance(given, torch.Tensor) else list(given)
    if len(given) != len(batch.captions):
        raise RewardError(
            f"reward {reward.name!r} returned {len(given)} scores for "
            f"{len(batch.captions)} captions: it must return one each"
        )
    scores: Column = []
    for row, value in enumerate(given):
        if not (value is None or (isinstance(value, Real) and math.isfinite(value))):
            raise RewardError(
                f"reward {reward.name!r} returned {value!r} for image "
                f"{batch.image_ids[row]!r}, caption {batch.captions[row]!r}: it must return a "
                f"finite number, or None where it cannot judge"
            )
        scores.append(None if value is None else float(value))
    return scores


def _failed(reward: Reward, batch: CaptionBatch, error: Exception) -> RewardError:
    return RewardError(
        f"reward {reward.name!r} failed on a batch that begins with image "
        f"{batch.image_ids[0]!r}, caption {batch.captions[0]!r}: {_what(error)}"
    )


def _what(error: Exception) -> str:
    """The error and where it was raised, for a reward's author needs the line.

    A sentence that we or one of our own rewards wrote for the user stands alone.
    """
    if isinstance(error, UserError):
        return str(error)
    at = traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(at.filename).is_relative_to(Path(reward_files.__file__).parent)
    if isinstance(error, ValueError) and ours:
        return str(error)
    return f"{type(error).__name__}: {error} ({at.filename}:{at.lineno})"
