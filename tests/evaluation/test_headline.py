"""The verdict at the head of a report."""

from types import SimpleNamespace

import pytest

from vizer_rl.evaluation.report.headline import headline

UP, DOWN, NONE = (0.1, 0.05, 0.15), (-0.1, -0.15, -0.05), (0.01, -0.02, 0.04)


def shown(**change):
    estimates = {
        name: dict(zip(("value", "low", "high"), numbers, strict=True))
        for name, numbers in change.items()
    }
    base = {"mean_length": {"value": 6.0}}
    (html,) = headline(
        SimpleNamespace(verdict=None, change=estimates, base=base, controls={}), "500 images"
    )
    return html


@pytest.mark.parametrize(
    ("f1", "wrong", "level", "title"),
    [
        (UP, DOWN, "pass", "More of what is there, less of what is not"),
        (UP, NONE, "pass", "More of what is there, as many captions with a wrong fact"),
        (UP, UP, "warn", "More of what is there, and more of what is not"),
        (NONE, DOWN, "pass", "As much of what is there, less of what is not"),
        (NONE, NONE, "warn", "No change of what is true is shown"),
        (DOWN, DOWN, "warn", "Less of what is there, and less of what is not"),
        (DOWN, NONE, "fail", "Captions are no truer than before"),
        (NONE, UP, "fail", "Captions are no truer than before"),
    ],
)
def test_where_the_truth_is_known_it_decides(f1, wrong, level, title):
    html = shown(fact_f1=f1, hallucination_rate=wrong, heldout_score=DOWN, mean_length=NONE)
    assert f'class="verdict {level}"><p class="title">{title}<' in html
    assert "The held-out scorer prefers the captions before training: -0.1" in html.replace(
        "−", "-"
    )
    assert "times as long" not in html


def test_without_the_truth_the_held_out_scorer_does_and_length_is_mentioned():
    html = shown(heldout_score=UP, mean_length=(1.2, 1.0, 1.4))
    assert 'class="verdict pass"><p class="title">The held-out scorer prefers the trained' in html
    assert "Captions are 1.2 times as long as before" in html


@pytest.mark.parametrize(
    ("score", "doubt", "level", "title"),
    [
        (UP, DOWN, "pass", "prefers the trained captions and doubts fewer of their words"),
        (UP, UP, "warn", "prefers the trained captions, and doubts more of their words"),
        (NONE, DOWN, "pass", "doubts fewer of the words"),
        (NONE, NONE, "warn", "shows no difference"),
        (NONE, UP, "fail", "doubts more of the words"),
        (DOWN, DOWN, "warn", "finds less in the captions, and doubts fewer of their words"),
        (DOWN, NONE, "fail", "prefers the captions before training"),
        (DOWN, UP, "fail", "prefers the captions before training"),
    ],
)
def test_words_that_the_scorer_doubts_say_what_a_changed_score_is_worth(score, doubt, level, title):
    html = shown(heldout_score=score, doubtful_words=doubt, mean_length=NONE)
    assert f'class="verdict {level}"><p class="title">The held-out scorer {title}<' in html
    assert "doubtful words " in html
