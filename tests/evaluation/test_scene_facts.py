"""The truth metric against expectations worked out by hand, and its properties on drawn scenes."""

import math
import time
from pathlib import Path

import numpy as np
import pytest

from vizer_rl.data.scenes import COLOURS, FILLS, SHAPES, SIZES, Scene, Thing, sample
from vizer_rl.evaluation.metrics.scene_facts.facts import by_kind, facts, score

ONE = Scene((Thing("circle", "red", "large", "solid", 48, 48, 19),), None, 0, 0)
PAIR = Scene(
    (
        Thing("star", "blue", "small", "striped", 20, 50, 10),
        Thing("square", "green", "large", "solid", 70, 52, 19),
    ),
    "left of",
    0,
    0,
)
TWINS = Scene(
    (
        Thing("heart", "yellow", "small", "solid", 20, 20, 10),
        Thing("heart", "yellow", "small", "solid", 75, 20, 10),
        Thing("cross", "black", "large", "striped", 48, 68, 19),
    ),
    None,
    0,
    0,
)
NEST = Scene(
    (
        Thing("triangle", "pink", "small", "solid", 40, 40, 10),
        Thing("circle", "purple", "large", "striped", 40, 40, 28),
        Thing("star", "orange", "small", "solid", 84, 84, 10),
    ),
    "inside",
    0,
    0,
)
TALL = Scene(
    (
        Thing("circle", "red", "small", "solid", 48, 20, 10),
        Thing("circle", "red", "large", "striped", 48, 65, 19),
    ),
    "above",
    0,
    0,
)
SCENES = {"ONE": ONE, "PAIR": PAIR, "TWINS": TWINS, "NEST": NEST, "TALL": TALL}
TABLE = (Path(__file__).parent / "facts.txt").read_text()  # scene right claimed recalled | caption
ROWS = [line.split("|") for line in TABLE.strip().splitlines()]
FAMILIES = (SHAPES, tuple(COLOURS), SIZES, FILLS, ("left of", "above", "inside"))


@pytest.mark.parametrize(
    ("expected", "caption"), ROWS, ids=[caption.strip() for _, caption in ROWS]
)
def test_table(expected: str, caption: str) -> None:
    name, *numbers = expected.split()
    right, claimed, matches = map(int, numbers)
    got = score(caption, SCENES[name])
    assert (got.right, got.claimed, got.recalled) == (right, claimed, matches)
    assert got.hallucinated == (right < claimed)


def test_numbers_of_a_score() -> None:
    got = score("a red square left of a star", PAIR)  # "red" is wrong, and so is the side
    assert (got.right, got.claimed, got.recalled, got.truth, got.words) == (2, 4, 2, 9, 7)
    assert (got.precision, got.recall) == (0.5, 2 / 9)
    assert math.isclose(got.f1, 2 * 0.5 * (2 / 9) / (0.5 + 2 / 9))
    nothing = score("", PAIR)
    assert (nothing.precision, nothing.f1, nothing.hallucinated) == (0.0, 0.0, False)


def test_facts_of_the_scenes() -> None:
    assert [len(facts(scene)) for scene in SCENES.values()] == [4, 9, 13, 13, 10]
    assert by_kind("a blue star left of a red square", PAIR) == {
        "object": (2, 2),
        "colour": (1, 2),
        "size": (0, 2),
        "fill": (0, 2),
        "count": (0, 0),
        "relation": (1, 1),
    }


def test_truth_as_stored_gives_the_same_score() -> None:
    things = [vars(thing) for thing in NEST.objects]
    stored = {"objects": things, "relation": "inside", "caption": NEST.caption}
    for caption in (NEST.caption, "a circle around a red triangle"):
        assert score(caption, stored) == score(caption, NEST)


def test_true_captions_are_perfect() -> None:
    for seed in range(500):
        scene = sample(seed)
        got = score(scene.caption, scene)
        assert got.f1 == 1, scene.caption
        assert not got.hallucinated
        assert all(matches == truth for matches, truth in by_kind(scene.caption, scene).values())


def test_one_swapped_word_is_a_hallucination() -> None:
    rng = np.random.default_rng(0)
    for seed in range(500):
        scene = sample(seed)
        padded = f" {scene.caption} "
        pairs = [
            (old, new)
            for family in FAMILIES
            for old in family
            for new in family
            if old != new and f" {old} " in padded
        ]
        old, new = pairs[int(rng.integers(len(pairs)))]
        wrong = padded.replace(f" {old} ", f" {new} ", 1)
        got = score(wrong, scene)
        assert got.hallucinated, (scene.caption, wrong)
        assert got.f1 < 1


def test_word_salad_is_finite() -> None:
    rng = np.random.default_rng(0)
    words = "a the two three circle squares red blue not no or and , . is are it that one other "
    words += "left_of inside in plus small striped star heart shapes both with stripes background "
    pool = words.replace("_", " ").split()
    for seed in range(1000):
        got = score(" ".join(rng.choice(pool, size=int(rng.integers(1, 60)))), sample(seed))
        assert 0 <= got.right <= got.claimed
        assert 0 <= got.recalled <= got.truth
        assert all(0 <= value <= 1 for value in (got.precision, got.recall, got.f1))


@pytest.mark.parametrize(
    "phrase", ["a red circle", "red", "the circle is red. ", "no star ", "a circle above "]
)
def test_two_thousand_words_are_quick(phrase: str) -> None:
    text = phrase * (2000 // len(phrase.split()))
    best = math.inf
    for _ in range(5):
        start = time.process_time()
        score(text, TALL)
        best = min(best, time.process_time() - start)
    assert best < 0.05
