"""Words of a class in a caption, and the captions with another of the class in their place."""

from rewards.lib.lexicon import Lexicon
from rewards.lib.word_classes import MAX_PLACES, WordClasses

CAPTIONS = [
    *("a red circle above a blue square", "an orange circle left of a red square"),
    *("two red circles", "two blue squares", "three blue circles", "a solid red circle"),
    *("a solid blue square", "a striped red circle", "a striped blue square"),
]


def places(caption, captions=CAPTIONS):
    return WordClasses(Lexicon.learn(captions)).places(caption)


def test_each_word_of_a_class_has_the_others_that_the_captions_use():
    found = {place.word: set(place.alternatives) for place in places(CAPTIONS[0])}
    assert found == {
        "red": {"orange", "blue"},  # no green: nobody says it
        "circle": {"square"},
        "above": {"left of"},
        "blue": {"red", "orange"},
        "square": {"circle"},
    }
    assert {p.word: p.alternatives for p in places("two red circles")}["two"] == ("three",)


def test_a_word_with_a_list_of_its_own_is_in_no_other_class():
    found = {place.word: set(place.alternatives) for place in places("a striped red circle")}
    assert found["striped"] == {"solid"}  # "a red circle" is no caption of a circle without stripes
    assert found["red"] == {"orange", "blue"}


def test_captions_and_prefixes_by_hand():
    caption = "A  red circle,\nleft of a blue square."
    red, circle, left, blue, _ = places(caption)
    assert [caption[p.start : p.end] for p in (red, circle, left, blue)] == [
        *("red", "circle", "left of", "blue")
    ]
    assert dict(zip(red.alternatives, red.captions, strict=True)) == {
        "orange": "An orange circle, left of a blue square.",  # with its article
        "blue": "A blue circle, left of a blue square.",
    }
    assert red.prefixes[0] == "A red"
    assert set(red.prefixes[1:]) == {"An orange", "A blue"}
    assert circle.prefixes == ("A red circle", "A red square")  # without the comma
    assert left.captions == ("A red circle, above a blue square.",)
    assert left.prefixes == ("A red circle, left of", "A red circle, above")


def test_words_without_an_alternative_have_no_place():
    assert places("untitled") == []
    assert places("") == []
    assert places("a red circle", ["a red circle"] * 3) == []  # all alike: no classes


def test_a_caption_without_an_end_costs_no_more_than_a_long_one():
    found = places("a red circle " * 4000)
    assert len(found) == MAX_PLACES
    assert found[-1].start < 500
