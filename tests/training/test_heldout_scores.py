"""How two held-out evaluations compare, by hand."""

import numpy as np
import pytest
import torch

from vizer_rl.training.heldout_scores import HeldoutScores


def scores(cosines, doubtful=None, judged=None):
    zeros = [0] * len(cosines)
    words = torch.tensor(doubtful or zeros), torch.tensor(judged or zeros)
    return HeldoutScores.by_image("abcdefgh"[: len(cosines)], torch.tensor(cosines), words)


def test_before_the_first_evaluation_there_is_nothing_to_be_worse_than():
    assert HeldoutScores().score == float("-inf")
    assert not HeldoutScores().clearly_above(scores([0.0]))
    assert np.isnan(scores([0.5]).doubt())
    assert all(np.isnan(x) for x in scores([0.5]).doubt_over(scores([0.5])))


def test_a_lead_has_the_error_of_infinitely_many_resamples():
    now, best = [0.5, 0.2, 0.2, 0.1], [0.5, 0.4, 0.2, 0.3]
    mean, error = scores(now).lead(scores(best))
    assert mean == pytest.approx(-0.1)
    assert error == pytest.approx(0.1 / 4**0.5)  # of 0, -.2, 0, -.2 the deviation is .1
    drawn = np.random.default_rng(0).choice(np.subtract(now, best), (20_000, 4)).mean(1)
    assert error == pytest.approx(drawn.std(), rel=0.02)
    assert scores(best).lead(scores(best)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("other", "clear"),
    [
        ([0.8, 0.7, 0.6, 0.5], True),  # leads .1 each: no spread, any lead is clear
        ([1.0, 0.9, 0.8, 0.7], False),
        ([0.6, 0.7, 0.8, 0.5], False),  # .3 .1 -.1 .1: mean .1, deviation .1414, error .0707
        ([0.6, 0.6, 0.6, 0.4], True),  # .3 .2 .1 .2: mean .2, deviation .0707, error .0354
    ],
)
def test_a_lead_of_over_two_errors_is_clear(other, clear):
    assert scores([0.9, 0.8, 0.7, 0.6]).clearly_above(scores(other)) is clear


def test_only_shared_images_count():
    other = HeldoutScores({"a": 0.6, "c": 0.8, "z": 0.0})  # .3, -.1
    assert scores([0.9, 0.8, 0.7, 0.6]).lead(other) == pytest.approx((0.1, 0.2 / 2**0.5))


@pytest.mark.parametrize(
    ("doubtful", "judged", "excused"),
    [
        ([0, 1, 0, 0], [2, 2, 2, 2], True),  # 1 of 8, where the best has 4 of 16
        ([1, 1, 0, 0], [2, 2, 2, 2], False),  # as many
        ([0, 0, 0, 0], [2, 2, 2, 1], False),  # none, but less than half of the words
        ([0, 0, 0, 0], [0, 0, 0, 0], False),  # says nothing
    ],
)
def test_who_says_less_and_less_that_is_doubtful_is_excused(doubtful, judged, excused):
    best = scores([0.9, 0.8, 0.7, 0.6], [1, 1, 1, 1], [4, 4, 4, 4])
    worse = scores([0.8, 0.7, 0.6, 0.5], doubtful, judged)
    assert worse.excused(best) is excused
    assert best.clearly_above(worse) is not excused


def test_a_rise_of_doubt_is_a_difference_of_ratios_with_the_error_of_resampled_images():
    before = scores([0.5] * 8, [0, 1, 0, 0, 1, 0, 0, 1], [2, 2, 1, 3, 2, 2, 1, 3])
    now = scores([0.5] * 8, [1, 2, 0, 1, 1, 2, 0, 1], [4, 3, 2, 3, 4, 3, 2, 3])
    rise, error = now.doubt_over(before)
    assert rise == pytest.approx(8 / 24 - 3 / 16)
    drawn = np.random.default_rng(0).integers(0, 8, (20_000, 8))

    def ratios(s):
        x, y = (np.array([*column.values()]) for column in (s.doubtful, s.judged))
        return x[drawn].sum(1) / y[drawn].sum(1)

    assert error == pytest.approx((ratios(now) - ratios(before)).std(), rel=0.1)
    assert before.doubt_over(before) == (0.0, 0.0)
