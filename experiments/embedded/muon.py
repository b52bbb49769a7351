"""Muon for matrices inside a network, with its Newton-Schulz steps in float32.

torch.optim.Muon has them in bfloat16, in which a product takes 60 times as long on CPUs that lack
it; but for rounding this is the same (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

MOMENTUM = 0.95  # Nesterov's
COEFFICIENTS = (3.4445, -4.775, 2.0315)
STEPS, EPSILON = 5, 1e-7
RMS = 0.2  # of an update, as AdamW's: a rate means the same for both (Moonlight, arXiv 2502.16982)


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal, with decoupled weight decay; for (A, B) matrices alone."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr = group["lr"]
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                buffer = state.setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - MOMENTUM)
                update = orthogonal(p.grad.lerp(buffer, MOMENTUM))
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update, alpha=-lr * RMS * max(p.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """Near U V' of a matrix U S V': five quintic Newton-Schulz steps, singular values about 1."""
    if len(matrix) > matrix.shape[1]:
        return orthogonal(matrix.T).T
    a, b, c = COEFFICIENTS
    x = matrix / matrix.norm().clamp(min=EPSILON)
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
