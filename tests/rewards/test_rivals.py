"""What may be as true in a word's place is read beside its class, not in it."""

import torch

from rewards.lib.lexicon import Lexicon
from rewards.lib.rivals import with_rivals, within_class
from rewards.lib.word_classes import WordClasses

CAPTIONS = [
    *("a red circle above a blue square", "an orange circle left of a red square"),
    *("two red circles", "three blue squares", "a square right of an orange circle"),
    *("a blue circle below a red square", "Two orange squares"),
]


def rivals(caption, word):
    """The place of a word of a caption, with its rivals."""
    row = WordClasses(Lexicon.learn(CAPTIONS)).places(caption)
    (place,) = (p for p in row if p.word == word)
    return with_rivals(caption, place)


def test_an_article_is_the_rival_of_a_number():
    place = rivals("a square and two red circles", "two")
    assert place.alternatives == ("three",)
    a, and_two, and_three = "a square and a", "a square and two", "a square and three"
    assert place.prefixes == (and_two, and_three, a)
    assert rivals("Two orange squares", "two").prefixes[-1] == "An"
    assert rivals("three blue squares", "three").prefixes == ("three", "two", "a")


def test_a_relation_s_class_is_its_contrary_and_the_others_are_rivals():
    place = rivals(CAPTIONS[0], "above")
    assert place.alternatives == ("below",)
    assert place.captions == ("a red circle below a blue square",)
    assert place.prefixes[:2] == ("a red circle above", "a red circle below")
    assert set(place.prefixes[2:]) == {"a red circle left of", "a red circle right of"}


def test_a_word_without_rivals_stays_as_it_is():
    place = rivals(CAPTIONS[0], "blue")
    assert set(place.alternatives) == {"red", "orange"}
    assert len(place.prefixes) == 1 + len(place.alternatives)


def test_a_class_s_probabilities_are_those_before_the_rivals():
    place = rivals(CAPTIONS[0], "above")
    p = within_class(torch.tensor([0.3, 0.1, 0.4, 0.2]), place)
    assert torch.allclose(p, torch.tensor([0.75, 0.25]))
