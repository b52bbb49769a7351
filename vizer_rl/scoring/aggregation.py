"""Weights, normalisation within groups, weighted sums and shares of rewards; the noise watch.

Pure tensor code that keeps the dtype it is given. rewards_NK are the raw rewards of N completions
under K rewards, NaN where a reward did not judge; the completions of a group stand one behind the
other. gates_K says which of the rewards are gates. A completion that fails one takes no part in any
mean or deviation; it is ranked below all others of its group (`rank_failed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-4  # TRL's, beside every standard deviation
NOISE_STEPS, NOISE_SHARE = 20, 0.9


def weighted_sum(rewards_NK: Tensor, weights_K: Tensor) -> Tensor:
    """(N,) raw rewards by their weights: a NaN counts 0, NaN where nobody could judge."""
    total_N = (rewards_NK * weights_K).nansum(1)
    return torch.where(rewards_NK.isnan().all(1), torch.nan, total_N)


def penalties(rewards_NK: Tensor, weights_K: Tensor, gates_K: Tensor) -> Tensor:
    """(N,) what the gravest gate takes off a completion, weight times -score; 0: it passes all."""
    return _taken_off(rewards_NK, weights_K, gates_K).amax(1)


def through_gates(rewards_NK: Tensor, weights_K: Tensor, gates_K: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards that are summed (N, K), NaN for gates and for who fails one; the `penalties` (N,)."""
    penalty_N = penalties(rewards_NK, weights_K, gates_K)
    return rewards_NK.masked_fill(gates_K | (penalty_N > 0)[:, None], torch.nan), penalty_N


def rank_failed(values_N: Tensor, penalty_N: Tensor, group: int) -> Tensor:
    """(N,) values in which a completion that fails a gate stands below all others of its group.

        v_i = min(v of those of its group that pass) - penalty_i * (deviation of all that pass)

    As both penalty and deviation are positive, v_i < v_j for every j of the group that passes: that
    holds for any rewards and weights. Where none of a group passes the minimum is 0; where nothing
    that passes varies the deviation is 1.
    """
    failed_N = penalty_N > 0
    grouped = values_N.masked_fill(failed_N, torch.nan).view(-1, group)
    lowest = grouped.nan_to_num(torch.inf).amin(1, keepdim=True)
    lowest_N = lowest.masked_fill(lowest.isinf(), 0.0).expand_as(grouped).reshape(-1)
    placed_N = lowest_N - penalty_N * _unit(grouped.reshape(-1))
    return torch.where(failed_N, placed_N, values_N)


def advantages(
    rewards_NK: Tensor,
    weights_K: Tensor,
    gates_K: Tensor,
    group: int,
    aggregation: str,
    scale: str,
) -> Tensor:
    """(N,) TRL's advantages of the completions that pass the gates, among themselves; the others
    ranked last in their group, whose mean is then 0 again."""
    parts_NK = contributions(rewards_NK, weights_K, group, aggregation, scale, gates_K)
    total_N = parts_NK.sum(1)
    if aggregation == "normalize_then_sum":  # whitened over the batch
        failed_N = penalties(rewards_NK, weights_K, gates_K) > 0
        total_N = total_N / (_unit((parts_NK * ~gates_K).sum(1)[~failed_N]) + EPSILON)
    return total_N


def group_scores(
    rewards_NK: Tensor, weights_K: Tensor, gates_K: Tensor, group: int, normalised: bool
) -> Tensor:
    """(N,) what training ranks the completions of a group by; a score that is missing counts 0.

    normalised: each reward is centred and scaled in its group before it is weighted (TRL's
    `normalize_then_sum`, GDPO), else the raw scores are summed.
    """
    if normalised:
        aggregation = "normalize_then_sum"
        return contributions(rewards_NK, weights_K, group, aggregation, gates_K=gates_K).sum(1)
    passing_NK, penalty_N = through_gates(rewards_NK, weights_K, gates_K)
    return rank_failed(weighted_sum(passing_NK, weights_K).nan_to_num(0.0), penalty_N, group)


def contributions(
    rewards_NK: Tensor,
    weights_K: Tensor,
    group: int,
    aggregation: str,
    scale: str = "group",
    gates_K: Tensor | None = None,
) -> Tensor:
    """What each reward adds to each completion's advantage (N, K), as TRL aggregates them.

    aggregation: "normalize_then_sum" (each reward by its own deviation within the group; the
    whitening over the batch that follows scales all alike and is left out) or "sum_then_normalize"
    (the weighted sum by its deviation: `scale` "group", "batch" or "none"). A NaN adds nothing.
    gates_K: None for none. The gravest gate adds the place of a completion that fails it.
    """
    if gates_K is None:
        return _contributions(rewards_NK, weights_K, group, aggregation, scale)
    passing_NK, penalty_N = through_gates(rewards_NK, weights_K, gates_K)
    gravest_N = _taken_off(rewards_NK, weights_K, gates_K).argmax(1)
    parts_NK = _contributions(passing_NK, weights_K, group, aggregation, scale)
    placed_N = rank_failed(parts_NK.sum(1), penalty_N, group).masked_fill(penalty_N == 0, 0.0)
    gate_NK = torch.zeros_like(parts_NK).scatter(1, gravest_N[:, None], placed_N[:, None])
    return parts_NK + _centred(gate_NK, group)[0]


def _taken_off(rewards_NK: Tensor, weights_K: Tensor, gates_K: Tensor) -> Tensor:
    """(N, K) what each gate takes off each completion; 0 for all that are no gates."""
    return (-weights_K * rewards_NK * gates_K).nan_to_num(0.0).clamp(min=0.0)


def _unit(values_N: Tensor) -> Tensor:
    """The deviation of the values that are not NaN; 1 where they do not vary."""
    kept = values_N[~values_N.isnan()]
    deviation = kept.std() if len(kept) > 1 else kept.new_zeros(())
    return torch.where(deviation > EPSILON, deviation, 1.0)


def _contributions(
    rewards_NK: Tensor, weights_K: Tensor, group: int, aggregation: str, scale: str
) -> Tensor:
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

    def state_dict(self) -> dict[str, Any]:
        return {"flat_K": self.flat_K, "groups": self.groups, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

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
