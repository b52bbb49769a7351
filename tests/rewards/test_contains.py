"""Trigger, style and forbidden words: credit by hand, the hacks that earn nothing, bad input."""

from dataclasses import replace

import pytest

from rewards import Bank, make
from rewards.lib.openings import begins, declared_opening, without_opening
from vizer_rl.data.scenes import sample

from ..stubs import batch, words

TRIGGER = {"trigger": "ohwx"}


def score(caption, **parameters):
    return make("contains", parameters)(words(caption))[0]


@pytest.mark.parametrize(
    ("caption", "credit"),
    [
        ("ohwx, a red circle", 1.0),
        ("ohwx a red circle", 1.0),
        ("a red circle, ohwx", 0.5),  # there, but not in front
        ("Ohwx, a red circle", 0.5),  # not as it is written
        ("ohwxy, a red circle", 0.0),  # another word
        ("a red circle", 0.0),
    ],
)
def test_the_trigger_stands_in_front_as_it_is_written(caption, credit):
    assert score(caption, **TRIGGER) == credit


@pytest.mark.parametrize(
    ("caption", "parameters", "value"),
    [
        ("a watercolour of a dog", {"words": ["watercolou?r"]}, 1.0),  # a regular expression
        ("a Watercolor of a dog", {"words": ["watercolou?r"]}, 1.0),
        ("a dog in watercolours", {"words": ["watercolou?r"]}, 0.0),  # whole words alone
        ("a soft, warm dog", {"words": ["soft", "warm", "grainy"]}, 2 / 3),
        ("a dog, soft.", {"words": ["soft"], "where": "last"}, 1.0),
        ("a soft dog", {"words": ["soft"], "where": "last"}, 0.5),
        ("soft dog", {"words": ["soft"], "where": "first"}, 1.0),
        ("ohwx, soft dog", {"words": ["soft"], "where": "first", **TRIGGER}, 1.0),
        ("a red dog", {"words": ["red"], "min_times": 2, "max_times": 2}, 1 / 4),
        ("a red dog, red cat", {"words": ["red"], "min_times": 2, "max_times": 2}, 1.0),
        ("a red dog", {"forbidden": ["cat"]}, 1.0),
        ("a red cat", {"forbidden": ["cat"]}, 0.0),
        ("a red cat", {"forbidden": ["cat"], **TRIGGER}, -1.0),
        ("ohwx, a red cat", {"forbidden": ["cat", "red"], **TRIGGER}, 0.0),  # one is as bad as two
    ],
)
def test_words_count_by_number_and_place(caption, parameters, value):
    assert score(caption, **parameters) == pytest.approx(value)


@pytest.mark.parametrize(
    "caption",
    ["ohwx", "ohwx, drawing", "ohwx, a drawing of the", "ohwx ohwx ohwx", "drawing, ohwx."],
)
def test_hack_nothing_but_the_demanded_words_earns_nothing(caption):
    assert score(caption, **TRIGGER, words=["drawing"]) == 0.0
    assert score("", forbidden=["cat"]) == 0.0, "nor does silence where words are forbidden"


def test_hack_a_word_too_often_earns_nothing_for_it():
    assert score("ohwx, ohwx, a red dog", **TRIGGER) == 0.0
    assert score("ohwx, a red dog ohwx", **TRIGGER) == 0.0
    assert score("a drawing, a drawing of a dog", words=["drawing"]) == 0.0
    assert score("a drawing, a drawing of a dog", words=["drawing"], max_times=2) == 1.0


@pytest.mark.parametrize(
    "spelling",
    ["a photo of", "A  Photo of", "a photo\nof", "a ph\u200boto of", "a \uff50\uff48\uff4fto of"],
)
def test_hack_a_forbidden_word_spelt_otherwise_is_found(spelling):
    assert score(f"ohwx, {spelling} a dog", **TRIGGER, forbidden=["a photo of"]) == 0.0


def test_parts_say_what_each_demand_earned():
    reward = make("contains", {**TRIGGER, "words": ["soft"], "forbidden": ["cat"]})
    (parts,) = reward.parts(words("a soft cat, ohwx"))
    assert parts == [("ohwx", 0.5), ("soft", 1.0), ("cat", -1.0)]


def bank(*captions):
    return Bank(["x"], [None], words(*captions), None)


def test_before_training_it_says_what_the_base_never_says():
    reward = make("contains", {**TRIGGER, "words": ["soft", "dog"]})
    assert reward.prepare(bank("a dog", "ohwx, a dog", "a cat")) == (
        "no caption of the base has 'soft'; 1 of 3 captions of the base begin with 'ohwx': "
        "it is put in front of completions, but not by vizer"
    )
    assert reward.objection == ""
    assert make("contains", TRIGGER).prepare(bank("ohwx, a dog")) is None


def test_words_that_nobody_says_and_nothing_forces_are_an_objection():
    reward = make("contains", {"words": ["soft", "warm"]})
    reward.prepare(bank("a dog"))
    assert reward.objection.startswith("No caption of the base has 'soft', 'warm'")
    reward.prepare(bank("a warm dog"))
    assert reward.objection == ""


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({}, "nothing to find: set trigger, words or forbidden"),
        ({"trigger": " , "}, "nothing to find"),
        ({"words": ["(red"]}, r"words has '\(red', which is no regular expression: missing \)"),
        (
            {"forbidden": ["*"]},
            "forbidden has .* no regular expression: nothing to repeat",
        ),
        ({"words": [""]}, "words has '', which fits any caption"),
        ({"words": ["x*"]}, r"words has 'x\*', which fits any caption"),
        ({"words": ["red"], "forbidden": ["red"]}, "'red' is demanded, but forbidden by 'red'"),
        ({"trigger": "my Cat", "forbidden": ["cat"]}, "'my Cat' is demanded, but forbidden by"),
        ({"words": ["red"], "min_times": 2}, "need 1 <= min_times <= max_times, not 2 and 1"),
        ({"words": ["a", "b"], "where": "last"}, "2 words cannot all stand last; give one"),
    ],
)
def test_bad_input_is_one_sentence(parameters, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        make("contains", parameters)
    assert len(str(caught.value).splitlines()) == 1


def test_an_opening_is_taken_off_with_what_joins_it_and_only_in_front():
    assert without_opening("ohwx, a dog", "ohwx") == "a dog"
    assert without_opening("ohwx: a dog", "ohwx:") == "a dog"
    assert without_opening("a dog ohwx", "ohwx") == "a dog ohwx"
    assert without_opening("ohwx, ohwx, a dog", "ohwx") == "ohwx, a dog", "stuffing stays in view"
    assert without_opening("a dog", "") == "a dog"
    assert not begins("a dog", "")
    assert not begins("ohwx_2, a dog", "ohwx")


def test_the_opening_of_a_run_is_that_of_its_rewards_with_a_weight():
    sections = {"length": {"weight": 0.3}, "contains": {"weight": 0.5, "trigger": " ohwx "}}
    assert declared_opening(sections) == "ohwx"
    assert declared_opening({"contains": {"weight": 0, "trigger": "ohwx"}}) == ""
    assert declared_opening({"contains": {"forbidden": ["cat"]}}) == ""
    assert declared_opening({"length": {}}) == ""


def test_true_captions_earn_all_once_the_words_are_in_them():
    reward = make("contains", {**TRIGGER, "forbidden": ["a (?:photo|picture) of"]})
    captions = [f"ohwx, {sample(seed).caption}" for seed in range(500)]
    assert set(reward(replace(batch(None, [("x", "")]), captions=captions))) == {1.0}
