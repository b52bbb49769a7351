"""Reward functions: the adapter between TRL and rewards/, from completions to reward columns."""

from __future__ import annotations

import asyncio
import math
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from rewards import Bank, CaptionBatch, Encoder, ReferencePolicy

from ..errors import ImageError
from .aggregation import NoiseWatch, contributions, penalties, shares, weighted_sum
from .contract import Column, RewardError, checked, failed, reason, time_limit, time_limit_async
from .reward import Reward, opening_of

__all__ = ["Reward", "RewardFunctions"]


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
        *,
        warn: Callable[[str], object] = lambda sentence: None,
    ) -> None:
        """eos_ids: tokens that end a caption; prompt: of every image; warn: takes each sentence of
        a reward that prepared itself, and on one that is only noise."""
        self.rewards, self.encoders, self.policy = list(rewards), encoders, policy
        self.eos_ids, self.num_generations = set(eos_ids), num_generations
        self.prompt, self.warn = prompt, warn
        # what captions begin with; rewards that did not declare it read them without it
        self.opening = opening_of(self.rewards)
        judges = [r for r in self.rewards if r.content and r.weight]
        self.noise = NoiseWatch(
            [r.name for r in judges], [float(r.declared("step", 0.0)) for r in judges]
        )
        self._seconds: dict[str, float] = {}
        self._rollout: Any = None  # the completion ids that `_scores` are of
        self._scores: dict[str, Column] = {}
        self._loop: asyncio.Runner | None = None

    def prepare(self, bank: Bank) -> None:
        """Let every reward that wants to prepare itself do so; what it returns is a warning."""
        for reward in self.rewards:
            if hasattr(reward.score, "prepare"):
                try:
                    remark = reward.score.prepare(bank)
                except ImageError:
                    raise
                except Exception as error:
                    raise RewardError(f"reward {reward.name!r}: {reason(error)}") from error
                if isinstance(remark, str):
                    self.warn(f"reward {reward.name!r}: {remark}")

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

    def trl_functions(self) -> list[Callable[..., Column]]:
        """One reward function per reward, as TRL calls them; `__name__` is the reward's name."""
        return [self._function(reward) for reward in self.rewards]

    def _function(self, reward: Reward) -> Callable[..., Column]:
        def function(
            completions: list[Any], completion_ids: list[list[int]], **columns: Any
        ) -> Column:
            if self._rollout is not completion_ids:  # the first reward of this rollout: score all
                captions = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
                batch = self.batch(columns["image_id"], columns["image"], captions, completion_ids)
                self._scores, self._rollout = self.scores(batch), completion_ids
            return self._scores[reward.name]

        function.__name__ = reward.name
        return function

    def scores(
        self, batch: CaptionBatch, rewards: Sequence[Reward] | None = None
    ) -> dict[str, Column]:
        """Each reward's scores by name: checked, gates applied; async ones together.

        rewards: these of the run's alone. A batch of single captions needs those without groups.

        A content reward's score of a caption that a gate refuses is None. Raises RewardError, with
        the reward's name, where a reward raises or returns what is no finite number, or not one per
        caption.
        """
        rewards = self.rewards if rewards is None else rewards
        raw = {r.name: self._timed(r, batch) for r in rewards if not r.is_async}
        raw |= self._together([r for r in rewards if r.is_async], batch)
        scores = {r.name: checked(r.name, raw[r.name], batch) for r in rewards}
        gates = [scores[r.name] for r in rewards if r.gates]
        refused = [any((value or 0.0) < 0 for value in row) for row in zip(*gates, strict=True)]
        for r in rewards if gates else []:
            if r.content:
                column = zip(scores[r.name], refused, strict=True)
                scores[r.name] = [None if no else value for value, no in column]
        return scores

    @property
    def gates_K(self) -> torch.Tensor:
        """(K,) which of the rewards are gates."""
        return torch.tensor([r.gates for r in self.rewards], dtype=torch.bool)

    @property
    def seconds(self) -> dict[str, float]:
        """How long each reward took over the last batch, by name."""
        return dict(self._seconds)

    def weighted(self, scores: dict[str, Column]) -> list[float]:
        """The weighted sum per caption over the rewards that have scores; None counts 0."""
        weights = [r.weight for r in self.rewards if r.name in scores]
        columns = [scores[r.name] for r in self.rewards if r.name in scores]
        rows = [[math.nan if v is None else v for v in row] for row in zip(*columns, strict=True)]
        rewards_NK = torch.tensor(rows, dtype=torch.float64).view(len(rows), len(weights))
        total_N = weighted_sum(rewards_NK, torch.tensor(weights, dtype=torch.float64))
        sums: list[float] = total_N.nan_to_num(0.0).tolist()
        return sums

    def step_metrics(
        self, rewards_NK: torch.Tensor, aggregation: str, scale: str
    ) -> dict[str, float]:
        """What to log of this rollout: each reward's share, time and own notes.

        rewards_NK: the raw rewards of all devices, NaN for None, in the order of `rewards`.
        """
        weights = torch.tensor([r.weight for r in self.rewards])
        metrics: dict[str, float] = {}
        group, gates_K = self.num_generations, self.gates_K
        parts = contributions(rewards_NK.cpu(), weights, group, aggregation, scale, gates_K)
        if gates_K.any():
            failures = penalties(rewards_NK.cpu(), weights, gates_K).view(-1, group) > 0
            metrics["completions/failed_groups"] = failures.all(1).float().mean().item()
        for reward, share in zip(self.rewards, shares(parts).tolist(), strict=True):
            name = f"reward/{reward.name}"
            metrics[f"{name}/share"] = share
            metrics[f"time/{name}"] = self._seconds.get(reward.name, 0.0)
            if hasattr(reward.score, "notes"):
                metrics |= {f"{name}/{key}": float(v) for key, v in reward.score.notes().items()}
        judges = [k for k, r in enumerate(self.rewards) if r.content and r.weight]
        for sentence in self.noise.update(rewards_NK[:, judges], self.num_generations):
            self.warn(sentence)
        return metrics

    def _timed(self, reward: Reward, batch: CaptionBatch) -> Any:
        began = time.monotonic()
        try:
            with time_limit(reward.name):
                return reward.score(reward.read(batch, self.opening))
        except (ImageError, RewardError):
            raise  # an image that has gone, a reward that hangs: its sentence says it all
        except Exception as error:
            raise failed(reward.name, batch, error) from error
        finally:
            self._seconds[reward.name] = time.monotonic() - began

    def _together(self, rewards: list[Reward], batch: CaptionBatch) -> dict[str, Any]:
        async def timed(reward: Reward) -> Any:
            began = time.monotonic()
            try:
                pending: Any = reward.score(reward.read(batch, self.opening))
                async with time_limit_async(reward.name):
                    return await pending
            except (ImageError, RewardError):
                raise
            except Exception as error:
                raise failed(reward.name, batch, error) from error
            finally:
                self._seconds[reward.name] = time.monotonic() - began

        async def gathered() -> list[Any]:
            return await asyncio.gather(*map(timed, rewards))

        if not rewards:
            return {}
        if self._loop is None:  # one for the whole run: a reward may keep a connection open
            self._loop = asyncio.Runner()
            weakref.finalize(self, self._loop.close)
        return dict(zip([r.name for r in rewards], self._loop.run(gathered()), strict=True))


def _groups(image_ids: Sequence[str], max_size: int) -> Iterable[range]:
    start = 0
    for end in range(1, len(image_ids) + 1):
        full = end - start == max_size
        if end == len(image_ids) or full or image_ids[end] != image_ids[start]:
            yield range(start, end)
            start = end
