"""GRPOTrainer whose policy may train parts whole: in float32, at a tenth of LoRA's rate."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from trl import GRPOTrainer

from ..policy.trained_parts import copies, keep_in_float32

WHOLE_RATE = 0.1  # times train.learning_rate: LoRA wants about ten times the rate of full tuning


class WholeParts(GRPOTrainer):
    """TRL's GRPOTrainer for an adapter that holds copies of whole layers (policy.train: full)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        keep_in_float32(self.model)

    def create_optimizer(self, model: Any = None) -> Optimizer:
        if self.optimizer is not None:
            return self.optimizer
        optimizer: Optimizer = super().create_optimizer(model)
        learning = self.model if model is None else model
        whole = {id(p) for _, copy in copies(learning) for p in copy.parameters()}
        split_rates(optimizer, whole)
        return optimizer


def split_rates(optimizer: Optimizer, whole: set[int]) -> None:
    """Give the weights with these ids WHOLE_RATE times the rate, in groups of their own."""
    for group in list(optimizer.param_groups):
        mine = [p for p in group["params"] if id(p) in whole]
        if len(mine) == len(group["params"]):
            group["lr"] *= WHOLE_RATE if mine else 1.0
        elif mine:
            group["params"] = [p for p in group["params"] if id(p) not in whole]
            rest = {name: value for name, value in group.items() if name != "params"}
            optimizer.add_param_group({**rest, "params": mine, "lr": group["lr"] * WHOLE_RATE})
