"""The share of the user's own words by hand, its hacks, the file of words, bad input."""

from pathlib import Path

import pytest

from rewards import Bank, make

from ..stubs import words

LIST = ["circle", "red", "traffic light", "Schloß"]


def score(caption, **parameters):
    return make("vocabulary", {"words": LIST, **parameters})(words(caption))[0]


@pytest.mark.parametrize(
    ("caption", "share"),
    [
        ("a red circle near a traffic light", 4 / 4),  # "a" and "near" say nothing
        ("three red Circles", 2 / 3),  # any case, any number; 3 is `enough`
        ("a red circle and a blue square", 2 / 4),
        ("a traffic cone in the light, red", 1 / 4),  # an entry of two words is not one of them
        ("ein Schloß", 1 / 3),
        ("a thing", 0.0),
        ("", 0.0),
    ],
)
def test_the_share_by_hand(caption, share):
    assert score(caption) == pytest.approx(share)


def test_hack_few_words_of_the_list_cannot_earn_it_all():
    assert score("circle") == pytest.approx(1 / 3)
    assert score("circle", enough=1) == 1.0
    assert score("a red circle under a traffic light") > score("red circle")


def test_hack_a_word_again_and_again_counts_once():
    assert score("red red red circle circle circle") == score("red circle")


def test_hack_foreign_words_lower_the_share_though_more_are_listed():
    assert score("a red circle by a traffic light") > score(
        "a red circle by a traffic light and a house, a tree, a dog"
    )


def test_parts_are_the_different_words():
    reward = make("vocabulary", {"words": LIST})
    assert reward.parts(words("a red dog, a red cat")) == [[("red", 1.0), ("dog", 0), ("cat", 0)]]


def test_the_list_may_be_a_file(tmp_path):
    file = tmp_path / "words.txt"
    file.write_bytes("\ufeff# mine\ncircle\n\nred  # a colour\ntraffic  light\ncircle\n".encode())
    reward = make("vocabulary", {"words": str(file)})
    assert reward.entries == ["circle", "red", "traffic light"]
    assert reward(words("a red traffic light")) == [1.0]


def test_before_training_it_says_how_much_of_the_list_the_base_says():
    reward = make("vocabulary", {"words": LIST})
    sample = words("a red circle", "a light for traffic")
    assert reward.prepare(Bank(["x"], [None], sample, None)) == (
        "2 of 4 entries of the list are in no caption of the base"
    )
    assert reward.objection == ""
    assert make("vocabulary", {"words": ["red"]}).prepare(Bank(["x"], [None], sample, None)) is None
    reward.prepare(Bank(["x"], [None], words("a blue dog"), None))
    assert reward.objection == "No caption of the base has a word of vocabulary's list"


def test_bad_input_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("# nothing\n\n")
    Path("latin.txt").write_bytes("Schloß".encode("latin-1"))
    for value, sentence in (
        ([], "there is no word in its list; give it one at least"),
        (["  "], "there is no word in its list"),
        (["red", "--"], "'--' is no word"),
        ("empty.txt", "there is no word in empty.txt"),
        ("none.txt", "the word list none.txt does not exist"),
        ("latin.txt", "the word list latin.txt is not UTF-8 text"),
        (".", "cannot read the word list .: Is a directory"),
    ):
        with pytest.raises(ValueError, match=sentence) as caught:
            make("vocabulary", {"words": value})
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ValueError, match="need enough >= 1, not 0"):
        make("vocabulary", {"words": LIST, "enough": 0})
