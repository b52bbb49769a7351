"""Record of the last rollout, in plain values: what alarms and trackers read of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor

from ..policy.chat import message_text
from ..scoring.reward_functions import RewardFunctions


@dataclass(frozen=True)
class RolloutRecord:
    """N completions of all devices, those of a group one behind the other.

    lengths: in tokens with their end; ended: whether they came to one; weights: of the K rewards;
    content: whether each judges what a caption says, with a weight above 0; gates: whether it is a
    gate; group: completions of an image; rewards_NK: raw, NaN where a reward did not judge;
    advantages_N: (N,), a caption's mean where each token has its own.
    """

    image_ids: tuple[str, ...]
    captions: tuple[str, ...]
    lengths: tuple[int, ...]
    ended: tuple[bool, ...]
    reward_names: tuple[str, ...]
    weights: tuple[float, ...]
    content: tuple[bool, ...]
    gates: tuple[bool, ...]
    group: int
    rewards_NK: Tensor
    advantages_N: Tensor


class LastRollout:
    """Keeps the record of the newest rollout; a holder of the trainer, saved with checkpoints."""

    def __init__(self, functions: RewardFunctions) -> None:
        self.record: RolloutRecord | None = None  # before the first
        self._functions = functions
        self._completions: list[tuple[str, str, int, bool]] = []

    def sampled(
        self,
        image_ids: Sequence[str],
        prompts: Any,
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
    ) -> None:
        """Take in the completions of this device, before they are scored (rows: TRL's order)."""
        ends = self._functions.eos_ids
        rows = zip(image_ids, completions, completion_ids, strict=True)
        self._completions = gather_object(
            [
                (image_id, message_text(text).strip(), len(ids), bool(ids) and ids[-1] in ends)
                for image_id, text, ids in rows
            ]
        )

    def judged(self, rewards_NK: Tensor, advantages: Iterable[float]) -> None:
        """Make the record; advantages: a log of all rollouts, of which the newest N are taken."""
        image_ids, captions, lengths, ended = zip(*self._completions, strict=True)
        newest = list(advantages)[-len(captions) :]
        rewards = self._functions.rewards
        self.record = RolloutRecord(
            image_ids,
            captions,
            lengths,
            ended,
            tuple(reward.name for reward in rewards),
            tuple(reward.weight for reward in rewards),
            tuple(reward.content and reward.weight > 0 for reward in rewards),
            tuple(reward.gates for reward in rewards),
            self._functions.num_generations,
            rewards_NK.detach().cpu(),
            rewards_NK.new_tensor(newest).cpu(),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"record": dict(vars(self.record)) if self.record else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.record = RolloutRecord(**state["record"]) if state["record"] else None
