"""Weighted sums and shares by hand and against TRL's own aggregation; the noise watch."""

import math

import numpy as np
import pytest
import torch

from vizer_rl.scoring.aggregation import (
    NOISE_STEPS,
    NoiseWatch,
    contributions,
    group_scores,
    shares,
    weighted_sum,
)

NAN = float("nan")


def test_two_rewards_that_agree_share_by_their_weights():
    # one group of two; each reward's deviation is sqrt(2)/2 times its range, so both normalise to
    # -+ 1/sqrt(2); weights 3 and 1 make 3/4 and 1/4 of the advantage
    rewards = torch.tensor([[0.0, 10.0], [1.0, 30.0]])
    parts = contributions(rewards, torch.tensor([3.0, 1.0]), 2, "normalize_then_sum")
    low = -1 / math.sqrt(2)
    assert torch.allclose(parts, torch.tensor([[3 * low, low], [-3 * low, -low]]), atol=1e-3)
    assert shares(parts).tolist() == pytest.approx([0.75, 0.25], abs=1e-3)


def test_a_reward_that_pulls_against_the_others_has_a_negative_share():
    # c = (-2, 2) and (1, -1): A = (-1, 1); cov(c_1, A) = 4, cov(c_2, A) = -2, var(A) = 2 in sums
    parts = torch.tensor([[-2.0, 1.0], [2.0, -1.0]])
    assert shares(parts).tolist() == pytest.approx([2.0, -1.0])


def test_a_sum_that_is_normalised_afterwards_lets_the_wide_reward_rule():
    rewards = torch.tensor([[0.0, 0.0], [1.0, 9.0]])
    parts = contributions(rewards, torch.ones(2), 2, "sum_then_normalize", "none")
    assert parts.tolist() == [[-0.5, -4.5], [0.5, 4.5]]
    assert shares(parts).tolist() == pytest.approx([0.1, 0.9])
    for scale in ("group", "batch"):
        parts = contributions(rewards, torch.ones(2), 2, "sum_then_normalize", scale)
        assert shares(parts).tolist() == pytest.approx([0.1, 0.9])


def test_what_a_reward_did_not_judge_adds_nothing():
    rewards = torch.tensor([[0.0, NAN], [1.0, NAN], [0.0, 5.0], [1.0, 7.0]])
    parts = contributions(rewards, torch.ones(2), 2, "normalize_then_sum")
    assert parts[:2, 1].tolist() == [0.0, 0.0]
    assert parts.isfinite().all()
    assert sum(shares(parts).tolist()) == pytest.approx(1.0)
    assert shares(torch.zeros(4, 2)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("aggregation", ["normalize_then_sum", "sum_then_normalize"])
def test_the_contributions_add_up_to_trls_advantage(aggregation):
    torch.manual_seed(0)
    rewards, weights, group = torch.randn(24, 3), torch.tensor([1.0, 0.3, -0.5]), 8
    parts = contributions(rewards, weights, group, aggregation)
    grouped = rewards.view(-1, group, 3)
    if aggregation == "normalize_then_sum":
        z = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)
        expected = (z.reshape(-1, 3) * weights).sum(1)
    else:
        total = (rewards * weights).sum(1).view(-1, group)
        expected = (total - total.mean(1, keepdim=True)) / (total.std(1, keepdim=True) + 1e-4)
    assert torch.allclose(parts.sum(1), expected.reshape(-1), atol=1e-5)
    assert float(shares(parts).sum()) == pytest.approx(1.0)


def test_the_sum_counts_what_cannot_be_judged_as_nothing():
    rewards = torch.tensor([[1.0, torch.nan], [1.0, 2.0], [torch.nan, torch.nan]])
    got = weighted_sum(rewards, torch.tensor([1.0, 0.5]))
    assert torch.equal(got[:2], torch.tensor([1.0, 2.0]))
    assert got[2].isnan()
    gates = torch.tensor([False, False])
    raw = group_scores(rewards.double(), torch.tensor([1.0, 0.5]), gates, 3, normalised=False)
    assert raw.dtype == torch.float64
    assert raw.tolist() == [1.0, 2.0, 0.0]


def test_group_scores_by_hand_in_double_precision():
    """Two images of four captions under three rewards; one ties, one judged all but a caption."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(8, 3, generator=generator).double()
    rewards[:, 1], rewards[1, 2], rewards[4:7, 0] = 1.0, NAN, NAN  # and one judged a single one
    weights = torch.tensor([1.0, 0.3, 2.0], dtype=torch.float64)
    wanted = np.zeros(8)
    for start in (0, 4):
        for k, weight in enumerate(weights.tolist()):
            column = rewards[start : start + 4, k].numpy()
            judged = ~np.isnan(column)
            if judged.sum() > 1:
                z = (column - np.nanmean(column)) / (np.nanstd(column, ddof=1) + 1e-4)
                wanted[start : start + 4] += weight * np.where(judged, z, 0.0)
    gates = torch.zeros(3, dtype=torch.bool)
    scores = group_scores(rewards, weights, gates, 4, normalised=True)
    assert scores.dtype == torch.float64
    np.testing.assert_allclose(scores, wanted, rtol=1e-12, atol=1e-12)
    assert group_scores(rewards[:0], weights, gates, 4, normalised=True).shape == (0,)


def test_a_reward_whose_spread_is_noise_is_told_once():
    watch = NoiseWatch(["flat", "tiny", "good"], [0.0, 0.05, 0.05])
    rewards = torch.tensor([[1.0, 0.00, 0.0], [1.0, 0.05, 0.3], [NAN, 0.5, 0.1], [2.0, 0.5, 0.9]])
    result = [watch.update(rewards, 2) for _ in range(2 * NOISE_STEPS)]
    sentences = result.pop(NOISE_STEPS - 1)
    assert not any(result)
    assert len(sentences) == 2
    assert "'flat' is only noise" in sentences[0]
    assert "differ by 0" in sentences[0]
    assert "no more than 0.05" in sentences[1]


def test_a_spread_in_every_fifth_group_is_no_noise():
    watch = NoiseWatch(["rare"], [0.0])
    rewards = torch.zeros(10, 1)
    rewards[0] = 1.0
    assert not any(watch.update(rewards, 2) for _ in range(NOISE_STEPS))
    assert NoiseWatch([], []).update(torch.zeros(4, 0), 2) == []
