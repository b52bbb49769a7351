"""Scores, advantages, returns and value losses: pure functions of tensors.

B captions of at most T tokens; `mask` (B, T) is 1 on a caption's tokens, which stand at its front.
`reduce` sums a tensor over devices, so that means and variances are those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..scoring.aggregation import through_gates, weighted_sum

Reduce = Callable[[Tensor], Tensor]


def one_device(summed: Tensor) -> Tensor:
    """The `reduce` of a single device."""
    return summed


def masked_mean(x: Tensor, mask: Tensor, reduce: Reduce = one_device) -> Tensor:
    """Scalar mean of x (B, T) over the mask, of all devices; 0 where nothing is in it."""
    total, count = reduce(torch.stack([(x * mask).sum(), mask.sum().to(x.dtype)]))
    return total / count.clamp(min=1)


def masked_moments(x: Tensor, mask: Tensor, reduce: Reduce = one_device) -> tuple[Tensor, Tensor]:
    """Scalar mean and (biased) variance of x (B, T) over the mask, of all devices."""
    mean = masked_mean(x, mask, reduce)
    return mean, masked_mean((x - mean) ** 2, mask, reduce)


def whiten(x: Tensor, mask: Tensor, reduce: Reduce = one_device) -> Tensor:
    """x (B, T) with mean 0 and variance 1 over the mask, 0 outside it."""
    mean, variance = masked_moments(x, mask, reduce)
    return (x - mean) * torch.rsqrt(variance + 1e-8) * mask


def token_rewards(
    scores: Tensor, mask: Tensor, kl: Tensor | None = None, beta: float = 0.0
) -> Tensor:
    """(B, T): each caption's score (B,) at its last token, less beta times kl (B, T) at every one.

    The per-token penalty is that of Ziegler et al. 2019 (arXiv 1909.08593): kl = log p - log ref.
    """
    last = mask.long().sum(1, keepdim=True) - 1
    is_last = torch.arange(mask.shape[1], device=mask.device)[None] == last
    rewards = scores[:, None] * is_last
    return rewards if kl is None else rewards - beta * kl * mask


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates (B, T) of rewards and values (B, T); 0 outside the mask.

        delta_t = r_t + gamma V_{t+1} - V_t,    A_t = delta_t + gamma lam A_{t+1}

    Nothing follows a caption's last token: V and A are 0 there. Schulman et al. 2016
    (arXiv 1506.02438), equation 16. The returns are A + V.
    """
    mask = mask.to(values.dtype)
    rewards, values = rewards * mask, values * mask
    after_B = values.new_zeros(len(values))
    advantage_B, advantages = after_B, []
    for t in reversed(range(values.shape[1])):
        delta_B = rewards[:, t] + gamma * after_B - values[:, t]
        advantage_B = (delta_B + gamma * lam * advantage_B) * mask[:, t]
        after_B = values[:, t]
        advantages.append(advantage_B)
    return torch.stack(advantages[::-1], dim=1)


def leave_one_out(rewards: Tensor) -> Tensor:
    """Advantages (P, G): each completion's reward less the mean of the others of its prompt.

    RLOO, Ahmadian et al. 2024 (arXiv 2402.14740). NaN rewards count for nobody and get 0.
    """
    judged = ~rewards.isnan()
    count = judged.sum(1, keepdim=True)
    baseline = (rewards.nansum(1, keepdim=True) - rewards) / (count - 1)
    return torch.where(judged & (count > 1), rewards - baseline, 0.0)


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange: float
) -> Tensor:
    """Half the mean of the larger squared error: of the value, or of it kept within +-cliprange.

    All (B, T). The value clipping of PPO2 (Dhariwal et al. 2017, openai/baselines).
    """
    clipped = old_values + (values - old_values).clamp(-cliprange, cliprange)
    return 0.5 * masked_mean(torch.max((values - returns) ** 2, (clipped - returns) ** 2), mask)


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, reduce: Reduce = one_device
) -> Tensor:
    """1 - Var(returns - values) / Var(returns), a scalar: 1 is a perfect critic, 0 a constant."""
    residual = masked_moments(returns - values, mask, reduce)[1]
    return 1 - residual / masked_moments(returns, mask, reduce)[1].clamp(min=1e-8)


def ratio_metrics(
    logps: Tensor, old_logps: Tensor, mask: Tensor, epsilon: float, reduce: Reduce = one_device
) -> dict[str, Tensor]:
    """Metrics of an update: mean ratio, clipfrac, approx_kl, all scalars.

    approx_kl is the mean of (ratio - 1) - log ratio, Schulman's k3: never negative.
    """
    logratio = logps - old_logps
    ratio = logratio.exp()
    return {
        "ratio": masked_mean(ratio, mask, reduce),
        "clipfrac": masked_mean(((ratio - 1).abs() > epsilon).float(), mask, reduce),
        "approx_kl": masked_mean(ratio - 1 - logratio, mask, reduce),
    }


def best_of_group(scores: Tensor, keep: int) -> Tensor:
    """(P, G) of scores (P, G): G / keep for the `keep` best of each prompt, 0 for its others.

    Of equal ones the first is better; a NaN is never kept, its share goes to nobody.
    """
    absent = scores.isnan()
    order = scores.masked_fill(absent, -torch.inf).argsort(dim=1, descending=True, stable=True)
    best = torch.zeros_like(absent).scatter(1, order[:, :keep], True)
    return (best & ~absent).to(scores) * (scores.shape[1] / keep)


class Moments:
    """Mean and standard deviation of each of K columns over all rows so far (Chan et al.)."""

    def __init__(self, columns: int) -> None:
        self.count = torch.zeros(columns, dtype=torch.float64)
        self.mean, self.square = torch.zeros_like(self.count), torch.zeros_like(self.count)

    def update(self, rows: Tensor) -> None:
        """Take in rows (N, K); a NaN is not counted."""
        rows = rows.double().cpu()
        judged = ~rows.isnan()
        count = judged.sum(0)
        mean = rows.nansum(0) / count.clamp(min=1)
        square = ((rows - mean) ** 2).nansum(0)
        total = (self.count + count).clamp(min=1)
        shift = mean - self.mean
        self.square += square + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count += count

    def standardise(self, rows: Tensor) -> Tensor:
        """(N, K) with the mean taken off and divided by the standard deviation; constant: 0."""
        deviation = (self.square / (self.count - 1).clamp(min=1)).sqrt()
        scaled = (rows.double().cpu() - self.mean) / (deviation + 1e-4)
        return scaled.to(rows)

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def rollout_moments(aggregation: str, columns: int) -> Moments | None:
    """To standardise K rewards over one rollout, where TRL's `multi_objective_aggregation` does."""
    return Moments(columns) if aggregation == "normalize_then_sum" else None


def caption_scores(
    rewards_NK: Tensor, weights_K: Tensor, gates_K: Tensor, moments: Moments | None
) -> tuple[Tensor, Tensor]:
    """Scores (N,), NaN for captions that fail a gate or that nobody judged; `penalties` (N,).

    A score is the weighted sum of the rewards, each standardised by `moments` first, which take in
    these too; None: as they are.
    """
    weights_K, gates_K = weights_K.to(rewards_NK), gates_K.to(rewards_NK.device)
    rewards_NK, penalty_N = through_gates(rewards_NK, weights_K, gates_K)
    if moments is not None:
        moments.update(rewards_NK)
        rewards_NK = moments.standardise(rewards_NK)
    return weighted_sum(rewards_NK, weights_K), penalty_N


def local_rows(values_N: Tensor, size: int, rank: int) -> Tensor:
    """Of what all devices have, the rows of the device of this rank, which has `size` of them."""
    return values_N[rank * size : (rank + 1) * size]
