"""Signs of hacking and collapse, each against numbers worked out by hand."""

from math import isnan, nan

import pytest
import torch

from vizer_rl.algorithms.last_rollout import RolloutRecord
from vizer_rl.training import evidence as signs


def record(rewards_NK, weights, content=None, gates=None, group=3):
    rewards_NK = torch.tensor(rewards_NK)
    n, k = rewards_NK.shape
    return RolloutRecord(
        image_ids=("x",) * n,
        captions=("a dog",) * n,
        lengths=(3,) * n,
        ended=(True,) * n,
        reward_names=tuple("abc"[:k]),
        weights=tuple(weights),
        content=tuple(content or [True] * k),
        gates=tuple(gates or [False] * k),
        group=group,
        rewards_NK=rewards_NK,
        advantages_N=torch.zeros(n),
    )


def test_distinct_word_pairs_are_counted_over_all_captions():
    assert signs.distinct_2(["a red dog", "A red cat"]) == 3 / 4
    assert signs.distinct_2(["a dog", "a dog", "a dog"]) == 1 / 3
    assert isnan(signs.distinct_2(["dog", ""]))


def test_repeated_phrases_are_a_share_of_each_caption():
    assert signs.repeated_3grams(["a dog and a cat"]) == 0
    # six phrases of three words, of them three for the second time
    assert signs.repeated_3grams(["a red dog a red dog a red", "a dog"]) == pytest.approx(3 / 6 / 2)


def agreement(scored, heldout):
    return signs.mean_and_error(scored.agreements(torch.tensor(heldout)))


def test_agreement_is_the_mean_rank_correlation_within_groups():
    scored = signs.Scored(record([[1.0], [2.0], [3.0], [30.0], [20.0], [10.0]], [1.0]), False)
    assert agreement(scored, [0.1, 0.2, 0.3, 0.3, 0.2, 0.1])[0] == 1.0
    assert agreement(scored, [0.1, 0.2, 0.3, 0.1, 0.2, 0.3])[0] == 0.0
    # a reward that pulls the other way round is trained on by its negative weight
    pulled = signs.Scored(record([[1.0], [2.0], [3.0]], [-1.0]), True)
    assert agreement(pulled, [0.3, 0.2, 0.1])[0] == 1.0


def test_agreement_has_an_error_over_the_groups_that_have_an_order():
    order, flat = [0.1, 0.2, 0.3], [0.2] * 3
    scored = signs.Scored(record([[1.0], [2.0], [3.0]] * 5, [1.0]), False)
    mean, error = agreement(scored, order * 3 + order[::-1] + flat)
    # correlations 1, 1, 1, -1: standard deviation 1 with four groups less one
    assert (mean, error) == pytest.approx((0.5, 1 / 2))
    mean, error = agreement(scored, order * 3 + flat * 2)
    assert mean == 1.0
    assert isnan(error), "three groups are too few"


def test_a_reward_without_spread_agrees_with_nothing_and_flat_captions_say_nothing():
    scored = signs.Scored(record([[1.0], [1.0], [1.0], [1.0], [2.0], [3.0]], [1.0]), False)
    assert scored.flat_groups() == 0.5
    assert agreement(scored, [0.1, 0.2, 0.3, 0.2, 0.2, 0.2])[0] == 0.0
    assert all(map(isnan, agreement(scored, [0.2] * 6)))


def test_completions_that_fail_a_gate_are_left_out():
    rows = [[1.0, 0.0], [2.0, 0.0], [nan, -1.0]]
    scored = signs.Scored(record(rows, [1.0, 1.0], [True, False], [False, True]), True)
    assert agreement(scored, [0.1, 0.2, 0.9])[0] == pytest.approx(1.0)
    assert scored.total_N.tolist() == [1.0, 2.0, -1.0]


def test_content_rewards_are_compared_with_each_other_alone():
    rows = [[1.0, 3.0, 1.0], [2.0, 2.0, 2.0], [3.0, 1.0, 3.0]]
    scored = signs.Scored(record(rows, [1.0, 1.0, 1.0], [True, True, False]), False)
    assert scored.reward_agreement() == -1.0
    one = signs.Scored(record(rows, [1.0, 1.0, 1.0], [True, False, False]), False)
    assert isnan(one.reward_agreement())
