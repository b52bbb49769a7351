"""Rank correlations and best-of-n against numbers worked out by hand."""

import numpy as np
import pytest

from vizer_rl.evaluation import statistics

NAN = float("nan")


def test_ties_share_their_rank():
    assert statistics.ranks(np.array([10.0, 30, 20, 20])).tolist() == [1, 4, 2.5, 2.5]


def test_spearman_by_hand():
    # ranks 1 2 3 4 and 2 1 4 3: 1 - 6 * 4 / (4 * 15) = .6
    assert statistics.spearman(np.array([1.0, 2, 3, 4]), np.array([5.0, 1, 9, 7])) == pytest.approx(
        0.6
    )
    assert np.isnan(statistics.spearman(np.ones(3), np.arange(3.0)))


def test_within_groups_a_tied_reward_orders_nothing_and_a_tied_truth_asks_nothing():
    x = np.array([[1.0, 2, 3], [1, 1, 1], [1, 2, 3]])
    y = np.array([[3.0, 2, 1], [1, 2, 3], [1, 1, 1]])
    np.testing.assert_equal(statistics.within(x, y), [-1, 0, NAN])


def test_equal_numbers_have_an_interval_of_no_width():
    matches = statistics.estimates({"x": np.full(50, 0.3)})["x"]
    assert list(matches.values()) == pytest.approx([0.3, 0.3, 0.3], abs=1e-12)


def test_interval_of_a_coin_is_the_known_one():
    matches = statistics.estimates({"coin": np.array([0.0, 1.0] * 200)})["coin"]
    assert matches["value"] == 0.5
    assert matches["low"] == pytest.approx(0.5 - 1.96 * 0.5 / 20, abs=0.004)
    assert matches["high"] == pytest.approx(0.5 + 1.96 * 0.5 / 20, abs=0.004)


def test_interval_holds_the_true_mean_about_95_times_in_100():
    samples = np.random.default_rng(1).normal(3.0, 2.0, (100, 1000))
    matches = statistics.estimates({str(i): samples[:, i] for i in range(1000)}).values()
    assert 0.92 < np.mean([e["low"] <= 3.0 <= e["high"] for e in matches]) < 0.97


def test_same_seed_gives_the_same_interval_and_another_seed_another():
    x = {"x": np.random.default_rng(0).normal(size=40)}
    assert statistics.estimates(x) == statistics.estimates(x) != statistics.estimates(x, seed=1)


def test_pairs_of_one_image_count_as_one():
    assert statistics.per_image(np.array([1.0, 0, 1, NAN]), [3, 3, 5, 7]).tolist() == [0.5, 1]


def test_estimates_skip_what_is_missing():
    assert statistics.estimate(np.array([NAN])) is None
    assert statistics.estimate(np.array([1.0, NAN, 1.0])) == {"value": 1, "low": 1, "high": 1}


def test_best_of_n_is_exact():
    ranking, value = np.array([[1.0, 2, 3]]), np.array([[10.0, 20, 60]])
    assert statistics.best_of(ranking, value, 1)[0] == pytest.approx(30)
    assert statistics.best_of(ranking, value, 2)[0] == pytest.approx((20 + 60 + 60) / 3)
    assert statistics.best_of(ranking, value, 3)[0] == pytest.approx(60)
    tied = np.array([[1.0, 1, 1]])
    assert statistics.best_of(tied, value, 3)[0] == pytest.approx(30)


def test_no_image_is_its_own_other():
    for count in (2, 3, 7):
        for turn in range(9):
            other = statistics.shuffle_apart(count, turn)
            assert sorted(other) == list(range(count))
            assert all(a != b for a, b in enumerate(other))
