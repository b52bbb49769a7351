"""Every attack by hand, and what is learned of words from captions alone."""

import random

import pytest

import rewards
from rewards.lib.lexicon import Lexicon, phrases
from vizer_rl.audit.attacks import ATTACKS, STYLE, Subject, pairs_of
from vizer_rl.audit.compositions import ALL_ATTACKS

CAPTIONS = [
    "a small red circle",
    "a large red square",
    "a small blue circle and a large green star",
    "two large blue stars",
    "a green square inside a large blue circle",
    "a small green heart",
    "a red heart",
    "untitled",
    "untitled",
]
LEXIS = Lexicon.learn(CAPTIONS)
CAPTION = "a small red circle"


def subject(caption=CAPTION, **more):
    truth = {
        "captions": (caption,),
        "neighbour": "a large red square",
        "unrelated": "two large blue stars",
        "context": 12,
    }
    return Subject(caption, **{**truth, **more})


def attack(name, about=None):
    """The attacked captions of an attack, by its name."""
    chosen = next(a for a in ATTACKS if a.name == name)
    return [worse for _, worse in pairs_of(chosen, about or subject(), LEXIS, "seed")[0]]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a small red circle inside a large star", ["small red circle", "large star"]),
        ("untitled", []),
        ("red circle on a wall", ["red circle", "wall"]),
        ("A man riding a brown horse, with two dogs.", ["man", "brown horse,", "dogs."]),
        ("the dog is on the grass", ["dog", "grass"]),
        ("", []),
    ],
)
def test_phrases_end_with_their_noun(caption, expected):
    words = caption.split()
    assert [" ".join(words[i] for i in run) for run in phrases(caption)] == expected


def test_nouns_and_attributes_are_learned_without_a_list():
    assert all(LEXIS.is_noun(w) for w in ("circle", "square", "star", "heart"))
    assert not any(LEXIS.is_noun(w) for w in ("red", "small", "large", "untitled", "a"))
    assert list(LEXIS.swap_indices("a small red circle", noun=True)) == [3]
    assert list(LEXIS.swap_indices("a small red circle", noun=False)) == [1, 2]


def test_a_word_is_replaced_by_one_in_the_same_company():
    nouns = LEXIS.alternatives("circle", [])
    assert set(nouns) <= {"square", "heart"}  # a star was said once alone, "stars" is a plural
    assert nouns
    assert set(LEXIS.alternatives("red", [])) == {"green", "blue"}
    assert LEXIS.alternatives("red", ["a blue heart"]) == ["green"]
    assert LEXIS.alternatives("small", []) == ["large"]


def test_replacing_keeps_case_punctuation_and_mends_the_article():
    english = Lexicon.learn(["a cat", "an owl", "an owl"])
    assert english.replace("A cat, asleep", 1, "owl") == "An owl, asleep"
    assert english.replace("Cats sleep", 0, "owls") == "Owls sleep"
    assert LEXIS.replace("a red circle", 1, "orange") == "an orange circle"
    odd = Lexicon.learn(["a orange star", "a orange heart"])  # as these captions write it
    assert odd.replace("a red circle", 1, "orange") == "a orange circle"


def test_shuffled_words_are_the_same_words():
    (mixed,) = attack("shuffled words")
    assert mixed != CAPTION
    assert sorted(mixed.split()) == sorted(CAPTION.split())


def test_repeated_caption():
    assert attack("repeated caption") == ["a small red circle and a small red circle"]
    assert attack("repeated caption", subject("A dog.")) == ["A dog. A dog."]


def test_appended_nouns_are_frequent_and_absent():
    (stuffed,) = attack("appended nouns")
    assert stuffed.startswith("a small red circle and a ")
    added = stuffed.removeprefix(CAPTION).replace(" and a ", " ").split()
    assert set(added) == {"square", "heart"}


def test_swaps_change_one_word_to_one_of_its_kind():
    for name, index in (("noun swapped", {3}), ("attribute swapped", {1, 2})):
        swapped = attack(name)
        assert len(swapped) == len(index)
        for caption in swapped:
            pairs = zip(CAPTION.split(), caption.split(), strict=True)
            changed = [i for i, (a, b) in enumerate(pairs) if a != b]
            assert len(changed) == 1
            assert set(changed) <= index


def test_captions_of_others():
    assert attack("neighbour's caption") == ["a large red square"]
    assert attack("neighbour's caption", subject(neighbour=None)) == []
    assert attack("generic caption")[0] in ("a photo", "an image", "a picture of something")


def test_form_without_content():
    assert attack("comma list") == ["small, red, circle"]
    assert attack("style tokens") == [f"a small red circle, {STYLE}"]
    assert attack("empty") == [""]


def test_past_the_context_only_the_invented_sentence_differs():
    chosen = next(a for a in ATTACKS if a.name == "past the context")
    ((better, worse),), _ = pairs_of(chosen, subject(captions=(CAPTION, "a red circle")), LEXIS, "")
    assert worse == better + " two large blue stars."
    assert better.startswith("a small red circle. a red circle.")
    assert len(better.split()) >= 12


def test_what_would_not_change_is_left_out_and_counted():
    chosen = next(a for a in ATTACKS if a.name == "shuffled words")
    assert pairs_of(chosen, subject("circle"), LEXIS, "") == ([], 1)
    no_nouns = next(a for a in ATTACKS if a.name == "noun swapped")
    assert pairs_of(no_nouns, subject("untitled"), LEXIS, "") == ([], 1)


def test_guards_are_rewards_that_there_are():
    assert {a.guard for a in ALL_ATTACKS} <= set(rewards.names())


def test_the_same_seed_attacks_the_same_way_and_leaves_the_random_state():
    random.seed(1)
    before = random.getstate()
    assert attack("shuffled words") == attack("shuffled words")
    assert random.getstate() == before
