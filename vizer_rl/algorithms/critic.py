"""Critic of PPO: a value head on the policy's last hidden states, with an optimizer of its own.

It stands outside the policy, so that the exported adapter holds nothing of it and no wrapper of the
policy (DDP, FSDP, DeepSpeed) has to know it; its few gradients are averaged over devices by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

ADAPTER = "critic"  # of the LoRA that is the critic's trunk where it shares none


class ValueHead(nn.Sequential):
    """(B, T, D) hidden states to (B, T) float32 values; orthogonal init, values near 0 at first."""

    def __init__(self, width: int) -> None:
        first, last = nn.Linear(width, width), nn.Linear(width, 1)
        super().__init__(first, nn.Tanh(), last)
        for layer, gain in ((first, 2**0.5), (last, 0.01)):
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden.float()).squeeze(-1)


class Critic:
    """The head, the LoRA of its trunk if it has one, and what moves them."""

    def __init__(
        self, model: Any, lora: LoraConfig | None, learning_rate: float, max_norm: float
    ) -> None:
        """`model`: the PeftModel; `lora`: of an adapter of the critic's own, None to share."""
        width = model.get_base_model().config.get_text_config().hidden_size
        self.model, self.max_norm = model, max_norm
        self.head = ValueHead(width).to(model.device)
        self.has_trunk = lora is not None
        trunk = []
        if lora is not None:
            model.add_adapter(ADAPTER, lora)
            trunk = [p for n, p in model.named_parameters() if f".{ADAPTER}." in n]
        self.parameters = [*self.head.parameters(), *trunk]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=0.0)

    @contextmanager
    def trunk(self) -> Iterator[None]:
        """Inside, the model answers with the critic's own adapter, and that one alone learns.

        The backward pass belongs inside too: what is recomputed there must be the same model.
        """
        self.model.set_adapter(ADAPTER)
        try:
            yield
        finally:
            self.model.set_adapter("default")

    def step(self, average: Callable[[Tensor], Tensor]) -> None:
        """One update from the gradients, averaged over devices; none if there are none or NaN."""
        learning = [p for p in self.parameters if p.grad is not None]
        for p in learning:
            p.grad = average(p.grad)
        norm = torch.nn.utils.clip_grad_norm_(learning, self.max_norm or torch.inf)
        if norm.isfinite():
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Head and optimizer; an adapter of the critic's own lies in the checkpoint already."""
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
