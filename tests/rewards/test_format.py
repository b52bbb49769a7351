"""One sentence of plain text: each condition by hand, its hacks, captions that pass, bad input."""

import pytest

from rewards import make
from vizer_rl.data.scenes import sample

from ..stubs import words


def failed(caption, **parameters):
    (parts,) = make("format", parameters).parts(words(caption))
    return [name for name, _ in parts]


@pytest.mark.parametrize(
    ("caption", "conditions"),
    [
        ("A dog sits. A cat stands.", ["sentences"]),
        ("A dog sits; a cat stands", ["sentences"]),  # hack: another mark in place of the stop
        ("A dog sits.a cat stands", ["sentences"]),  # hack: no space behind it
        ("A dog sits | a cat stands", ["sentences"]),
        ("A dog sits\na cat stands", ["sentences"]),
        ("- a dog sits", ["list"]),
        ("2) a dog sits", ["list"]),
        ("dog, brown fur, green grass", ["list"]),
        ("dog/cat", ["list"]),
        ("cross, face", ["list"]),  # verbs elsewhere
        ("a dog and a cat and a bird and a fish and a cow and a pig", ["list"]),  # hack: no commas
        ("a dog, a cat, a bird, a fish, a cow, and a pig", ["list"]),
        ("A photo of a dog", ["opening"]),
        ("This is a black and white photograph of a dog", ["opening"]),
        ("The image shows a dog", ["opening"]),
        ("In this picture a dog sits", ["opening"]),
        ("We can see a dog", ["opening"]),
        ("a dog " + "that sits by a dog " * 8, ["limits"]),  # hack: it comes to no end
        ("A picture of a dog. It sits.", ["sentences", "opening"]),
        ("", ["empty"]),
        (" .,; ", ["empty"]),
    ],
)
def test_each_condition(caption, conditions):
    assert failed(caption) == conditions


@pytest.mark.parametrize(
    "caption",
    [
        "A man in a red hat, blue coat and gloves walks a dog in a park.",
        "A dog, a cat, and a bird sit on a mat",
        "Mr. Smith reads the news at 3.5 a.m. by St. Paul's",
        "a man takes a photo of a dog",
        "a small solid red circle left of a large striped blue star and a small green heart",
        "Dogs run, cats sleep",
        "A girl holds pictures of her dog",
    ],
)
def test_sentences_pass(caption):
    assert failed(caption) == []


def test_true_captions_of_scenes_pass():
    assert {tuple(failed(sample(seed).caption)) for seed in range(500)} == {()}


def test_the_score_is_minus_the_share_of_four_and_silence_fails_all():
    reward = make("format", {})
    captions = ("a dog sits", "A photo of a dog", "A photo of a dog; it sits", "")
    assert reward(words(*captions)) == [0.0, -0.25, -0.5, -1.0]


def test_the_limits_are_the_users():
    assert failed("A dog sits. A cat stands.", sentences=2) == []
    assert failed("a dog, a cat and a bird sit", items=2) == ["list"]
    assert failed("a dog sits here", max_words=3) == ["limits"]
    assert failed("a dog sits here", max_characters=15) == []
    assert failed("a dog sits here", max_characters=14) == ["limits"]


@pytest.mark.parametrize("name", ["sentences", "items", "max_words", "max_characters"])
def test_a_limit_below_one_is_one_sentence(name):
    with pytest.raises(ValueError, match=f"format: need {name} >= 1, not 0"):
        make("format", {name: 0})
