"""Step guard: an optimizer step whose loss or gradients are not finite is skipped and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback

from ..errors import UserError
from ..policy.whole_weights import whole

MAX_SKIPPED = 3  # steps in a row, at which the training ends


class StepGuard(TrainerCallback):
    """Keeps weights and optimizer as they were where a step would spoil them.

    Logs engine/skipped_steps, the number so far, once there is one. Raises UserError at the third
    in a row: the last checkpoint is of good weights.
    """

    def __init__(
        self,
        log_metric: Callable[[str, float], None],
        image_ids: Callable[[], Sequence[str]],
        warn: Callable[[str], object],
    ) -> None:
        """image_ids: of the rollout that is learnt from; warn: takes a sentence."""
        self.log_metric, self.image_ids, self.warn = log_metric, image_ids, warn
        self.skipped, self.in_a_row = 0, 0
        self._losses: list[Tensor] = []

    def watch(self, loss: Tensor) -> None:
        """Take in the loss of a batch of the step."""
        self._losses.append(loss.detach())

    def on_pre_optimizer_step(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        numbers = [*self._losses, *([whole(get_total_norm(grads))] if grads else [])]
        self._losses = []
        finite = bool(torch.stack([x.float().reshape(()) for x in numbers]).isfinite().all())
        self.in_a_row = 0 if finite else self.in_a_row + 1
        if not finite:
            optimizer.zero_grad(set_to_none=True)
            self.skipped += 1
            self._report(state.global_step + 1)
        if self.skipped:
            self.log_metric("engine/skipped_steps", float(self.skipped))

    def _report(self, step: int) -> None:
        ids = ", ".join(dict.fromkeys(self.image_ids())) or "unknown"
        sentence = f"step {step} is skipped: its loss or gradients are not finite (images: {ids})"
        if self.in_a_row < MAX_SKIPPED:
            self.warn(sentence)
            return
        raise UserError(
            f"{sentence}, the {MAX_SKIPPED}rd in a row. The last checkpoint is of good weights: "
            "--resume goes on from it, with a lower train.learning_rate or other images"
        )
