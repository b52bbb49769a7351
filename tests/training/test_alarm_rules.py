"""Alarm rules: when each begins to hold, that it is given once, and what it says."""

from dataclasses import replace

import pytest

from vizer_rl.training.alarm_judge import Judge
from vizer_rl.training.alarm_rules import Limits
from vizer_rl.training.evidence import Evidence

START = Evidence(0, 0.5, 0.2, 0.0, 0.0, words=10.0, distinct_2=0.4, repeated_3grams=0.02)
GOOD = replace(
    START,
    step=10,
    score=0.6,
    below_best=0.1,
    below_best_se=0.01,
    reward=1.0,
    reward_std=0.5,
    flat_groups=0.1,
    unended=0.05,
    entropy=0.6,
    kl_per_caption=0.2,
    agreement=0.5,
    reward_agreement=0.4,
)


def names(*evidence, limits=None):
    """The names of the alarms after each evaluation."""
    judge = Judge(limits)
    return [[finding.name for finding in judge.take(e)] for e in evidence]


def later(step, **changes):
    return replace(GOOD, step=step, below_best=0.0, **changes)


BELOW = {"score": 0.5, "below_best_se": 0.02, "reward": 1.6}


def test_a_held_out_drop_under_a_rising_reward_is_said_at_the_second_evaluation():
    judge = Judge()
    for e in (START, GOOD, replace(GOOD, step=20, **BELOW | {"below_best": -0.05})):
        assert judge.take(e) == []
    (finding,) = judge.take(replace(GOOD, step=30, **BELOW | {"below_best": -0.07}))
    assert finding.name == "heldout_drop"
    assert finding.sentence == (
        "reward rose 1.2 sd while the held-out scorer fell 0.4 sd since step 10: "
        "likely reward hacking"
    )
    assert finding.value == pytest.approx(-2.5)  # errors below, at the nearer of the two
    assert finding.threshold == -2.0


@pytest.mark.parametrize(
    ("first", "second", "reward", "raised"),
    [
        (-0.05, -0.05, 1.6, 30),
        (-0.03, -0.05, 1.6, None),  # 1.5 standard errors at the first
        (-0.05, -0.03, 1.6, None),
        (-0.05, -0.05, 1.0, None),  # the reward did not rise
        (-0.05, -0.05, 1.1, 30),
        (-0.078, -0.03, 1.0, None),  # 3.9 standard errors are not enough alone
        (-0.09, -0.09, 1.0, 20),  # 4.5 are
        (-0.03, -0.09, 1.6, 30),
    ],
)
def test_a_drop_counts_in_standard_errors_twice_or_by_far(first, second, reward, raised):
    below = {"score": 0.5, "below_best_se": 0.02, "reward": reward}
    rows = [replace(GOOD, step=s, below_best=b, **below) for s, b in ((20, first), (30, second))]
    steps = dict(zip((0, 10, 20, 30), names(START, GOOD, *rows), strict=True))
    assert [step for step, raised_names in steps.items() if raised_names] == [raised][
        : bool(raised)
    ]


def test_a_drop_with_fewer_doubtful_words_is_none():
    rows = [replace(GOOD, step=s, **BELOW | {"below_best": -0.5}) for s in (20, 30)]
    assert names(START, GOOD, *rows)[-2:] == [["heldout_drop"], []]
    excused = (replace(row, excused=True) for row in rows)
    assert names(START, GOOD, *excused)[-2:] == [[], []]


def test_shorter_captions_with_fewer_doubtful_words_are_no_drift_and_longer_ones_are():
    rows = [later(20, words=4.0, excused=True), later(30, words=26.0, excused=True)]
    assert names(START, GOOD, *rows)[2:] == [[], ["length"]]


@pytest.mark.parametrize(
    ("first", "second", "error", "raised"),
    [
        (0.05, 0.06, 0.02, True),
        (0.05, 0.03, 0.02, False),  # 1.5 standard errors
        (0.03, 0.05, 0.02, False),
        (0.025, 0.06, 0.005, False),  # sure, and too little
        (0.05, 0.06, 0.0, False),  # no error: nothing to measure by
    ],
)
def test_more_doubtful_words_than_before_training_twice_in_a_row(first, second, error, raised):
    start = replace(START, doubtful=0.2)
    rows = [
        later(step, doubtful=0.2 + rise, doubtful_rise=rise, doubtful_rise_se=error)
        for step, rise in ((20, first), (30, second))
    ]
    judge = Judge()
    given = [finding for e in (start, GOOD, *rows) for finding in judge.take(e)]
    assert [finding.name for finding in given] == ["doubtful"] * raised
    if raised:
        assert given[0].sentence.startswith("26% of the words are doubtful, before training 20%")


def test_a_drop_too_small_to_matter_is_none():
    rows = [
        replace(GOOD, step=s, **BELOW | {"below_best": -0.019, "below_best_se": 0.001})
        for s in (20, 30)
    ]
    assert names(START, GOOD, *rows)[-1] == []


def test_before_any_rise_a_drop_is_from_step_0_and_the_reward_from_the_first_rollouts():
    first = replace(GOOD, score=0.4, below_best=-0.1, below_best_se=0.04)
    judge = Judge()
    assert [judge.take(e) for e in (START, first)] == [[], []]
    (finding,) = judge.take(replace(first, step=20, reward=1.5))
    assert finding.sentence.startswith("reward rose 1.0 sd while the held-out scorer fell 0.5 sd")
    assert "since step 0" in finding.sentence


@pytest.mark.parametrize(("sign", "limit"), [("agreement", 0.0), ("reward_agreement", -0.1)])
def test_agreement_has_to_be_absent_three_times(sign, limit):
    below = [limit + shift for shift in (-0.1, 0.0, -0.2, -0.3)]
    rows = [later(20 + 10 * n, **{sign: value}) for n, value in enumerate(below)]
    assert names(START, GOOD, *rows) == [[], [], [], [], [sign], []]
    rows[1] = replace(rows[1], **{sign: limit + 0.01})
    assert names(START, GOOD, *rows) == [[]] * 6
    rows[1] = replace(rows[1], **{sign: float("nan")})  # not measured is not absent
    assert names(START, GOOD, *rows) == [[]] * 6


def test_a_reward_that_clearly_ranks_otherwise_is_told_of_before_the_third_time():
    judge = Judge()
    assert [judge.take(e) for e in (START, GOOD)] == [[], []]
    assert judge.take(later(20, agreement=-0.05, agreement_se=0.1)) == []
    (finding,) = judge.take(later(30, agreement=-0.04, agreement_se=0.1))
    # at most .15 and .16, each with two errors; together -.045 + 2 (.02 ** .5) / 2 = .096
    assert finding.sentence == (
        "the reward does not rank the captions of an image as the held-out scorer does (rank "
        "correlation +0.50, -0.05, -0.04 at 3 evaluations, at most +0.10 by 2 standard errors): it "
        "may reward what is not there"
    )
    assert (finding.value, finding.threshold) == (pytest.approx(0.0964, abs=1e-4), 0.1)
    once = later(20, agreement=-0.11, agreement_se=0.1)
    assert names(START, GOOD, once) == [[], [], ["agreement"]]
    assert names(START, GOOD, replace(once, agreement=-0.09)) == [[]] * 3
    unmeasured = replace(once, agreement_se=float("nan"))
    assert names(START, GOOD, unmeasured, replace(once, agreement=0.0)) == [[]] * 4


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("distinct_2", {"distinct_2": 0.161}, {"distinct_2": 0.159}),  # .4 of .4
        ("repeated_3grams", {"repeated_3grams": 0.22}, {"repeated_3grams": 0.23}),
        ("entropy", {"entropy": 0.13}, {"entropy": 0.11}),  # .2 of .6
        ("length", {"words": 6.6}, {"words": 6.4}),
        ("length", {"words": 24.9}, {"words": 25.1}),
        ("unended", {"unended": 0.25}, {"unended": 0.26}),
        ("kl_per_caption", {"kl_per_caption": 20.0}, {"kl_per_caption": 20.1}),
    ],
)
def test_each_sign_of_collapse_has_its_limit(name, inside, outside):
    assert names(START, GOOD, later(20, **inside)) == [[]] * 3
    assert names(START, GOOD, later(20, **outside)) == [[], [], [name]]


def test_groups_have_to_be_flat_twice():
    rows = [later(20, flat_groups=0.8), later(30, flat_groups=0.9)]
    assert names(START, GOOD, *rows) == [[], [], [], ["flat_groups"]]


def test_an_alarm_is_given_again_only_after_it_cleared():
    words = [4.0, 4.0, 10.0, 4.0]
    rows = [later(20 + 10 * n, words=w) for n, w in enumerate(words)]
    assert names(START, GOOD, *rows)[2:] == [["length"], [], [], ["length"]]


def test_a_judge_that_was_saved_goes_on_as_if_it_had_not_been():
    rows = [later(20 + 10 * n, agreement=-0.1, words=4.0) for n in range(4)]
    whole = names(START, GOOD, *rows)
    judge, result = Judge(), []
    for e in (START, GOOD, *rows):
        result.append([finding.name for finding in judge.take(e)])
        state, judge = judge.state_dict(), Judge()
        judge.load_state_dict(state)
    assert result == whole
    assert whole[-2:] == [["agreement"], []]


def test_other_limits_can_be_tried():
    assert names(START, GOOD, limits=Limits(agreement=0.6))[1] == []
    assert names(START, GOOD, limits=Limits(entropy=1.1)) == [[], ["entropy"]]
