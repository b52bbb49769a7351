"""The verdict's words on made-up numbers: one set-up that is well, and what spoils it."""

from copy import deepcopy

import pytest

from vizer_rl.audit.compositions import ALL_ATTACKS, OF_FIVE
from vizer_rl.audit.verdict import verdict


def about(value, spread=0.05, tied=0.0):
    """An estimate and, as picks, the share of ties and the wrong ones."""
    wrong = 1 - tied - value
    estimate = {"value": value, "low": value - spread, "high": value + spread}
    bounds = {"value": wrong, "low": wrong - spread, "high": wrong + spread}
    return {**estimate, "tied": tied, "wrong": bounds}


def each(value):
    return {"sum": about(value), "clip": about(value), "length": about(0.5)}


WELL = {
    "images": 64,
    "attacked": 60,
    "captions_per_image": 8,
    "rewards": {"clip": 1.0, "length": 0.3},
    "content": ["clip"],
    "scorers": {"train": "a", "heldout": "b"},
    "objections": {"clip": ""},
    "attacks": {
        a.name: {"wins": each(0.97), "images": 60, "in_reach": 0.5, "guard": a.guard}
        for a in ALL_ATTACKS
    },
    "trust": {
        kind: {judge: about(0.97) for judge in ("reward", "heldout", "policy", "certainty")}
        for kind in ("noun", "attribute")
    },
    "favourites": {"words": {}, "added": None},
    "controls": {"other": each(0.98), "policy": about(0.99)},
    "order": {
        "heldout": each(0.7),
        "length": each(0.2),
        "tied": {"sum": 0.0, "clip": 0.0, "length": 1.0},
        "distinct": 6.0,
    },
    "headroom": {"gain_over_greedy": about(0.1), "spread": 0.1},
    "noise": {"sum": 0.2},
}


def spoiled(path, value):
    numbers = deepcopy(WELL)
    *way, last = path
    index = numbers
    for key in way:
        index = index[key]
    index[last] = value
    return verdict(numbers)


def test_an_objection_of_any_reward_has_advice_that_fits():
    first = spoiled(["objections", "clip"], "no caption of the base has 'soft'")["lines"][0]
    assert first["says"] == "no caption of the base has 'soft'."
    assert "ask for it in data.prompt, or drop this reward" in first["do"]


def test_a_good_set_up_passes_and_is_told_what_is_well():
    result = verdict(WELL)
    assert result["overall"] == "pass"
    assert [line["about"] for line in result["lines"]] == ["headroom"]


@pytest.mark.parametrize(
    ("path", "value", "level", "says"),
    [
        (["attacked"], 0, "fail", "Not one sampled caption"),
        (["controls", "policy"], about(0.5), "fail", "does not see"),
        (["trust", "noun", "policy"], about(0.6), "fail", "only in 60"),
        (["trust", "noun", "policy"], about(0.77), "warn", "only in 77"),
        (["order", "tied", "sum"], 0.6, "warn", "the same score"),
        (["controls", "other", "sum"], about(0.5), "warn", "may bring out what the base knows"),
        (["controls", "other", "sum"], about(0.7), "warn", "hardly looks"),
        (["order", "heldout", "sum"], about(0.02), "fail", "does not agree"),
        (["order", "heldout", "sum"], about(0.2), "warn", "agrees little"),
        (
            ["trust", "noun", "reward"],
            about(0.86),
            "warn",
            "14\xa0% wrong: captions will get nouns",
        ),
        (["trust", "attribute", "reward"], about(0.6), "fail", "get attributes confidently wrong"),
        (["trust", "noun", "reward"], about(0.6, tied=0.36), "warn", "will not learn nouns by it"),
        (["trust", "noun", "reward"], about(0.5, tied=0.3), "warn", "30\xa0% tied, 20\xa0% wrong"),
        (["trust", "noun", "heldout"], about(0.7), "warn", "held-out scorer itself"),
        (["attacks", "repeated caption", "wins", "sum"], about(0.2), "fail", "will find them"),
        (["attacks", "repeated caption", "wins", "sum"], about(0.8), "warn", "may win"),
        (["attacks", "repeated caption", "wins", "sum"], about(0, tied=1), "warn", "100\xa0% tied"),
        (["attacks", "object added", "wins", "sum"], about(0.2), "fail", "will find them"),
        (["attacks", "object added", "wins", "sum"], about(0.8), "warn", "may win"),
        (["attacks", "negated", "wins", "sum"], about(0.6), "warn", "a thing from its denial"),
        (["attacks", OF_FIVE, "wins", "sum"], about(0.3), "warn", "the order of words"),
        (["attacks", "objects exchanged", "wins", "sum"], about(0.1), "fail", "objects exchanged"),
        (["favourites", "words"], {"red": about(0.1)}, "warn", '"red" (10\xa0% right, 90'),
        (
            ["favourites"],
            {"words": {"red": about(0.1)}, "added": about(0.2)},
            "fail",
            "Added where",
        ),
        (["order", "length", "sum"], about(0.95), "warn", "longest"),
        (["order", "length", "sum"], about(-0.95), "warn", "shortest"),
        (["noise", "sum"], 0.9, "warn", "noise"),
        (["controls", "other", "clip"], about(0.5), "warn", "image: clip."),
        (["objections", "clip"], "it sees nothing", "fail", "it sees nothing."),
        (["scorers", "heldout"], "a", "warn", "are the same"),
        (["order", "distinct"], 1.4, "fail", "1.4 differ"),
        (["order", "distinct"], 2.5, "warn", "2.5 differ"),
        (["headroom", "gain_over_greedy"], about(0.01, 0.03), "fail", "Nothing left to gain"),
        (["headroom", "gain_over_greedy"], about(0.01), "warn", "64 images cannot tell"),
    ],
)
def test_what_spoils_it_is_told(path, value, level, says):
    result = spoiled(path, value)
    assert result["overall"] == level
    assert says in result["lines"][0]["says"]
    assert result["lines"][0]["do"] or level == "warn"


def test_ties_are_fatal_where_the_held_out_scorer_does_not_like_the_other_picks_better():
    numbers = deepcopy(WELL)
    numbers["order"]["tied"]["sum"] = 1.0
    numbers["order"]["heldout"]["sum"] = about(0.0)
    (line,) = verdict(numbers)["lines"]
    assert (line["level"], line["about"]) == ("fail", "ties")


def test_an_attack_that_wins_out_of_reach_only_warns_and_names_its_guard():
    numbers = deepcopy(WELL)
    numbers["attacks"]["repeated caption"] |= {"wins": each(0.1), "in_reach": 0.0}
    result = verdict(numbers)
    assert result["overall"] == "warn"
    assert "repetition" in result["lines"][0]["do"]


def test_what_a_real_clip_does_not_tell_apart_is_named_in_one_warning_that_refuses_nothing():
    numbers = deepcopy(WELL)
    for name in ("attributes exchanged", "relation replaced"):
        numbers["attacks"][name]["wins"] = each(0.62)
    numbers["attacks"][OF_FIVE]["wins"] = each(0.23)
    result = verdict(numbers)
    assert result["overall"] == "warn"
    warned = [line for line in result["lines"] if line["level"] == "warn"]
    assert [line["about"] for line in warned] == ["relations"]
    assert "who has which attribute (attributes exchanged: 62" in warned[0]["says"]
    assert "do not expect such words to improve" in warned[0]["says"]
    assert "certainty, fluency" in warned[0]["do"]
    numbers["attacks"]["attributes exchanged"]["wins"] = each(0.8)
    numbers["attacks"]["relation replaced"] |= {"wins": {"sum": None}, "images": 0}
    numbers["attacks"][OF_FIVE]["wins"] = each(0.58)
    assert verdict(numbers)["overall"] == "pass"


def dial(gain, words=0.8):
    """The verdict under a dial, where the held-out score of the picks is clearly lower."""
    numbers = deepcopy(WELL)
    doubtful = {"greedy": about(0.3), "picked": about(0.2), "gain": gain, "words": words}
    numbers["headroom"] |= {"gain_over_greedy": about(-0.2, 0.01), "doubtful": doubtful}
    return verdict(numbers)


def test_under_a_dial_fewer_doubtful_words_are_what_there_is_to_gain():
    result = dial(about(0.1, 0.05))
    (line,) = result["lines"]
    assert result["overall"] == "pass"
    assert "best of 8 -0.100 [-0.150, -0.050] in the share of doubtful words;" in line["says"]


@pytest.mark.parametrize(
    ("gain", "words", "level", "says"),
    [
        (about(0.02, 0.05), 0.8, "warn", "64 images cannot tell whether there is anything to gain"),
        (about(-0.02, 0.04), 0.8, "fail", "Nothing left to gain: the best of 8 by this reward"),
        (
            about(0.1, 0.05),
            0.4,
            "warn",
            "has 40\N{NO-BREAK SPACE}% of the words that the base says",
        ),
        (about(0.1, 0.05), 0.5, "pass", "There is something to gain"),
    ],
)
def test_a_dial_s_gain_has_to_be_clear_and_of_enough_words(gain, words, level, says):
    result = dial(gain, words)
    assert result["overall"] == level
    assert says in result["lines"][0]["says"]


def test_an_attack_that_was_hardly_tried_is_not_told_of():
    numbers = deepcopy(WELL)
    numbers["attacks"]["past the context"] |= {"wins": each(0.1), "images": 2}
    numbers["attacks"]["style tokens"] |= {"wins": {"sum": None}, "images": 0}
    assert verdict(numbers)["overall"] == "pass"


def test_only_the_fatal_thing_is_told_of_a_reward_that_does_not_look():
    numbers = deepcopy(WELL)
    numbers["controls"]["other"]["sum"] = about(0.5)
    numbers["headroom"]["gain_over_greedy"] = about(-0.1)
    numbers["attacks"]["empty"]["wins"] = each(0.5)
    (line,) = verdict(numbers)["lines"]
    assert (line["level"], line["about"]) == ("fail", "image")


def test_a_reward_that_does_not_look_is_refused_where_the_held_out_scorer_disagrees():
    numbers = deepcopy(WELL)
    numbers["controls"]["other"]["sum"] = about(0.5)
    numbers["order"]["heldout"]["sum"] = about(0.02)
    (line,) = verdict(numbers)["lines"]
    assert (line["level"], line["about"]) == ("fail", "image")


def test_the_truth_is_not_looked_at():
    numbers = deepcopy(WELL) | {"truth": None}
    assert verdict(numbers) == verdict(WELL)
