"""What our algorithms share beyond TRL: one pass for log-probs and hidden states, ViZer's loss.

`Aligned` is GRPO itself (the table's `grpo`): without `alignment_coef` nothing here runs. PPO, RLOO
and ViZer build on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from trl.trainer.utils import (
    split_pixel_values_by_grid,
    split_tensor_dict,
    unsplit_pixel_values_by_grid,
)

from ..config.trainer_settings import GRPOSettings
from ..policy.shared_prefix.packing import CaptionForward
from .alignment_loss import AlignmentLoss
from .grpo import GRPO


class Aligned(GRPO):
    """GRPO whose loss may read hidden states, from the pass that gave the log-probs.

    alignment: ViZer's loss; train.py sets it where `alignment_coef` is above 0.
    """

    Config = GRPOSettings
    alignment: AlignmentLoss | None = None
    rewards_NK: Tensor
    passed: CaptionForward | None = None  # what TRL's loss is to use instead of a pass of its own

    @contextmanager
    def one_pass(self, model: Any, inputs: dict[str, Any]) -> Iterator[CaptionForward]:
        """A pass with hidden states, which TRL's loss uses inside; nested, it is the outer one."""
        outer = self.passed
        self.passed = outer or self.caption_forward(model, inputs, hidden=True, entropy=True)
        try:
            yield self.passed
        finally:
            self.passed = outer

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        """As TRL does, unless the pass was made before."""
        if self.passed is None:
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return self.passed.logps, self.passed.entropies, None

    def minibatches(self, rollout: dict[str, Any]) -> list[dict[str, Any]]:
        """A rollout cut as TRL cuts it for the updates, so that a pass over it fits in memory."""
        apart = split_pixel_values_by_grid(rollout)
        parts = split_tensor_dict(apart, self.args.steps_per_generation)
        return [unsplit_pixel_values_by_grid(part) for part in parts]

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's rewards (N, K) of all devices, kept for advantages of another kind than TRL's."""
        self.rewards_NK = super()._calculate_rewards(*args, **kwargs)
        return self.rewards_NK

    def log_advantages(self, advantages: Tensor) -> None:
        """Put these (N,), of all devices, into the completions table in place of TRL's."""
        told = self._logs["advantages"]
        for _ in range(len(advantages)):
            told.pop()
        told.extend(advantages.tolist())

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """As TRL does, and with the features that ViZer's loss aims at where it is in use."""
        output = super()._generate_and_score_completions(inputs)
        if self.alignment is not None:
            ids, images = [row["image_id"] for row in inputs], [row["image"] for row in inputs]
            output["image_features"] = self.alignment.features(ids, images)
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss, and `alignment_coef` times ViZer's from the same pass."""
        if self.alignment is None:
            return super()._compute_loss(model, inputs)
        with self.one_pass(model, inputs) as forward:
            loss = super()._compute_loss(model, inputs)
        assert forward.hidden is not None  # asked for by one_pass
        aligned, numbers = self.alignment.loss(
            self.accelerator.unwrap_model(model),
            forward.hidden,
            inputs["completion_mask"],
            inputs["image_features"],
        )
        for name, value in numbers.items():
            self.note(f"alignment/{name}", value)
        return loss + self.args.alignment_coef * aligned / self.current_gradient_accumulation_steps
