"""Weights, normalisation within groups, weighted sums and shares of rewards; the noise watch.

Pure tensor code that keeps the dtype it is given. rewards_NK are the raw rewards of N completions
under K rewards, NaN where a reward did not judge; the completions of a group stand one behind the
other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

EPSILON = 1e-4  # TRL's, beside every standard deviation
NOISE_STEPS, NOISE_SHARE = 20, 0.9


def weighted_sum(rewards_NK: Tensor, weights_K: Tensor) -> Tensor:
    """(N,) raw rewards by their weights: a NaN counts 0, NaN where nobody could judge."""
    total_N = (rewards_NK * weights_K).nansum(1)
    return torch.where(rewards_NK.isnan().all(1), torch.nan, total_N)


def group_scores(rewards_NK: Tensor, weights_K: Tensor, group: int, normalised: bool) -> Tensor:
    """(N,) what training ranks the completions of a group by; a score that is missing counts 0.

    normalised: each reward is centred and scaled in its group before it is weighted (TRL's
    `normalize_then_sum`, GDPO), else the raw scores are summed.
    """
    if normalised:
        return contributions(rewards_NK, weights_K, group, "normalize_then_sum").sum(1)
    return weighted_sum(rewards_NK, weights_K).nan_to_num(0.0)


def contributions(
    rewards_NK: Tensor, weights_K: Tensor, group: int, aggregation: str, scale: str = "group"
) -> Tensor:
    """What each reward adds to each completion's advantage (N, K), as TRL aggregates them.

    aggregation: "normalize_then_sum" (each reward by its own deviation within the group; the
    whitening over the batch that follows scales all alike and is left out) or "sum_then_normalize"
    (the weighted sum by its deviation: `scale` "group", "batch" or "none"). A NaN adds nothing.
    """
    judged = ~rewards_NK.isnan().all(1, keepdim=True)
    if aggregation == "normalize_then_sum":
        centred, deviation = _centred(rewards_NK, group)
        return (weights_K * centred / (deviation + EPSILON)).nan_to_num(0.0)
    parts_NK = torch.where(judged, (weights_K * rewards_NK).nan_to_num(0.0), float("nan"))
    centred, _ = _centred(parts_NK, group)
    if scale != "none":
        rows = group if scale == "group" else len(parts_NK)
        centred = centred / (_centred(parts_NK.sum(1, keepdim=True), rows)[1] + EPSILON)
    return centred.nan_to_num(0.0)


def _centred(values_NK: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Values minus their group's mean, and the group's standard deviation, (N, K) each."""
    grouped = values_NK.view(len(values_NK) // group, group, values_NK.shape[1])
    centred = grouped - grouped.nanmean(1, keepdim=True)
    count = (~grouped.isnan()).sum(1, keepdim=True)
    deviation = (centred.square().nansum(1, keepdim=True) / (count - 1)).sqrt()
    return centred.reshape_as(values_NK), deviation.expand_as(grouped).reshape_as(values_NK)


def shares(contributions_NK: Tensor) -> Tensor:
    """Each reward's share of the advantage's variance, cov(c_k, A) / var(A) with A = Σ_k c_k (K,).

    They sum to 1; a reward that pulls against the others has a negative one. All 0 where A does not
    vary.
    """
    centred_NK = contributions_NK - contributions_NK.mean(0)
    advantage_N = centred_NK.sum(1)
    variance = advantage_N.square().sum()
    if variance < 1e-12:
        return torch.zeros_like(centred_NK[0])
    return (centred_NK * advantage_N[:, None]).sum(0) / variance


class NoiseWatch:
    """Counts the groups that a reward does not tell apart, over the first NOISE_STEPS steps."""

    def __init__(self, names: Sequence[str], steps_K: Sequence[float]) -> None:
        """steps_K: for each reward the difference below which its scores are noise."""
        self.names, self.steps_K = list(names), torch.tensor(steps_K)
        self.flat_K, self.groups, self.updates = torch.zeros(len(names)), 0, 0

    def update(self, rewards_NK: Tensor, group: int) -> list[str]:
        """One sentence for each reward that is only noise, at step NOISE_STEPS; before, nothing."""
        if not self.names or self.updates == NOISE_STEPS:
            return []
        grouped = rewards_NK.float().cpu().view(-1, group, len(self.names))
        low = grouped.nan_to_num(float("inf")).amin(1)
        high = grouped.nan_to_num(float("-inf")).amax(1)
        self.flat_K += (high - low <= self.steps_K + 1e-6).sum(0)
        self.groups, self.updates = self.groups + len(grouped), self.updates + 1
        if self.updates < NOISE_STEPS:
            return []
        return [
            f"reward {name!r} is only noise: within {share:.0%} of the groups of the first "
            f"{NOISE_STEPS} steps its scores differ by {f'no more than {step:g}' if step else '0'}"
            for name, share, step in zip(
                self.names, self.flat_K / self.groups, self.steps_K.tolist(), strict=True
            )
            if share > NOISE_SHARE
        ]
