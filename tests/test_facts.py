"""The truth metric against expectations worked out by hand, and its properties on drawn scenes."""

import math
import time

import numpy as np
import pytest

from vizer_rl.scenes.draw import COLOURS, FILLS, SHAPES, SIZES, Scene, Thing, sample
from vizer_rl.scenes.facts import by_kind, facts, score

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
# right claimed found | caption; a claim that is not right is a hallucination
TABLE = """
ONE 0 0 0 |
ONE 0 0 0 | ?!.,;: -- '
ONE 4 4 4 | a large solid red circle
ONE 4 4 4 | A LARGE, SOLID, RED CIRCLE!
ONE 1 1 1 | a circle
ONE 2 2 2 | a red circle
ONE 1 2 1 | a blue circle
ONE 0 2 0 | a red square
ONE 2 5 2 | a red circle a red circle
ONE 2 2 2 | red red red circle
ONE 3 7 3 | a circle, a circle, a circle, a large red circle
ONE 3 3 3 | a red circle. The circle is large.
ONE 3 3 3 | a red circle. it is solid
ONE 2 2 2 | the red circle. the red circle. the red circle
ONE 3 3 3 | there is a circle in the picture. the shape is red. the object is large
ONE 2 2 2 | a circle that is red
ONE 3 3 3 | a circle, red and large,
ONE 2 2 2 | the colour of the circle is red
ONE 2 2 2 | the circle's color is red
ONE 2 2 2 | the circle is red in colour
ONE 2 2 2 | a circle of red colour
ONE 2 2 2 | a red-coloured circle
ONE 3 3 3 | a huge crimson disc
ONE 4 4 4 | a big plain scarlet ball
ONE 2 2 2 | a red round shape
ONE 3 3 3 | it is a large red circle
ONE 4 4 4 | a solid circle. it is a large red circle
ONE 1 1 1 | a magenta circle
ONE 1 1 0 | something red
ONE 0 1 0 | something blue
ONE 1 1 0 | a red object
ONE 1 1 0 | a red car
ONE 0 2 0 | a brown hexagon
ONE 1 3 0 | red, blue, green
ONE 1 1 0 | red, red, red
ONE 2 5 2 | a red blue green yellow circle
ONE 2 5 2 | a red circle, a blue circle
ONE 2 3 2 | a red circle. the circle is blue
ONE 1 8 0 | red orange yellow green blue purple pink black
ONE 1 6 1 | circle square triangle star heart cross
ONE 2 4 2 | a red circle left of a square
ONE 1 1 0 | no square
ONE 0 1 0 | no circle
ONE 2 2 1 | a circle, not a square
ONE 2 2 1 | a circle without a star
ONE 1 1 0 | there isn't a heart
ONE 1 1 0 | there isn’t any heart
ONE 1 1 0 | not a blue circle
ONE 0 1 0 | not a red circle
ONE 2 2 1 | the circle is not blue
ONE 1 2 1 | the circle is not red
ONE 1 3 1 | a circle, not red but blue
ONE 2 2 1 | a circle with no stripes
ONE 1 2 1 | a circle with stripes
ONE 3 3 2 | a red circle and no other shapes
ONE 3 3 2 | a red circle and nothing else
ONE 1 1 0 | one shape
ONE 0 1 0 | three shapes
ONE 0 1 0 | no shapes
ONE 1 3 1 | two circles
ONE 1 2 1 | circles
ONE 1 11 1 | 100 circles
ONE 2 2 2 | a photo of a red circle
ONE 2 2 2 | a square image of a red circle
ONE 2 2 2 | a red circle on a white background
ONE 2 2 2 | a red circle on a plain green background, my favourite nice picture
ONE 0 0 0 | The background is blue.
ONE 0 0 0 | a nice colourful wallpaper image
ONE 0 0 0 | ein großer roter Kreis
ONE 0 0 0 | un círculo rojo · 赤い円
PAIR 9 9 9 | a small striped blue star left of a large solid green square
PAIR 3 3 3 | a star left of a square
PAIR 3 3 3 | a square to the right of a star
PAIR 3 3 3 | the star is to the left of the square
PAIR 2 3 2 | a square left of a star
PAIR 2 3 2 | a star above a square
PAIR 2 3 2 | a star inside a square
PAIR 2 3 2 | a star in a square
PAIR 2 3 2 | a star contains a square
PAIR 2 2 2 | a star next to a square
PAIR 2 2 2 | a star, not left of a square
PAIR 3 3 3 | a star in the image, left of a square
PAIR 4 4 4 | a blue star and a green square
PAIR 2 4 2 | a green star and a blue square
PAIR 4 4 4 | a star on the left of a large square
PAIR 1 1 1 | on the left there is a star
PAIR 2 2 2 | a star with a square to its right
PAIR 2 2 2 | to the right of the star is a square
PAIR 2 2 1 | a blue thing left of a square
PAIR 3 3 2 | two shapes: a star and a square
PAIR 4 4 4 | a star is left of a square and is blue
PAIR 4 4 4 | a star left of a square is blue
PAIR 4 4 4 | a star left of a square that is green
PAIR 4 4 4 | a star left of a square. It is striped.
PAIR 3 3 3 | a star. a square. the star is left of the square
PAIR 3 4 3 | a star. a square. they are small
PAIR 2 2 2 | a star-shaped object and a box
PAIR 3 3 3 | a STAR beside a SQUARE; the star is stripy, the square is not
PAIR 3 3 3 | a blue star with white stripes
PAIR 3 3 3 | a blue and white striped star
PAIR 2 5 2 | a blue star and a green one
PAIR 3 3 3 | a tiny navy star
PAIR 1 3 0 | no circle, square or star
PAIR 2 2 0 | neither a circle nor a heart
TWINS 13 13 13 | two small solid yellow hearts and a large striped black cross
TWINS 3 3 3 | two hearts
TWINS 2 4 2 | three hearts
TWINS 2 2 2 | hearts
TWINS 1 1 1 | a heart
TWINS 3 3 3 | a heart and a heart
TWINS 5 5 5 | a pair of yellow hearts
TWINS 5 5 5 | 2 yellow love hearts
TWINS 6 7 6 | two yellow hearts and crosses
TWINS 3 3 3 | hearts and a plus sign
TWINS 4 5 4 | a blue plus and two hearts
TWINS 2 2 2 | a heart plus a cross
TWINS 3 5 3 | two red hearts
TWINS 2 6 2 | five hundred hearts
TWINS 5 5 5 | two hearts. both are yellow.
TWINS 5 5 5 | two hearts, both yellow
TWINS 5 5 5 | two hearts. the two hearts are small
TWINS 4 5 4 | two hearts, one yellow and one black
TWINS 4 5 4 | two hearts. one is yellow and the other is black
TWINS 1 1 0 | three shapes
TWINS 2 2 0 | two yellow shapes
TWINS 2 3 0 | three yellow shapes
TWINS 5 5 4 | two hearts above a cross
TWINS 5 5 4 | a cross below two hearts
TWINS 4 5 4 | two hearts left of a cross
NEST 3 3 3 | a triangle inside a circle
NEST 3 3 3 | a circle around a triangle
NEST 3 3 3 | a circle containing a triangle
NEST 3 3 3 | a triangle surrounded by a circle
NEST 4 4 4 | a triangle in the purple circle
NEST 2 3 2 | a circle inside a triangle
NEST 2 3 2 | a triangle left of a circle
NEST 2 3 2 | a star inside a circle
NEST 3 3 2 | a circle above a star
NEST 2 2 2 | a circle with a triangle inside
NEST 4 4 4 | a purple circle with a pink triangle inside it
NEST 2 2 2 | a circle; inside it is a triangle
NEST 4 4 4 | a triangle inside a circle and a star
NEST 3 4 3 | a triangle and a star inside a circle
NEST 4 4 4 | an orange star, the triangle is pink
NEST 4 4 3 | three objects: a circle, a triangle, a star
NEST 5 5 3 | three objects: a circle, a triangle, a star, nothing else and no heart
NEST 0 1 0 | nothing pink
NEST 1 1 0 | nothing black
NEST 2 2 1 | a star, a large something
NEST 3 3 3 | the shape on the left is a circle. it is large and striped
TALL 10 10 10 | a small solid red circle above a large striped red circle
TALL 4 4 4 | a circle above a circle
TALL 4 4 4 | a circle below a circle
TALL 5 5 5 | two red circles
TALL 2 2 0 | two red shapes
TALL 5 6 5 | a large circle above a small circle
TALL 6 6 6 | a small circle above the large circle
TALL 5 5 5 | a small circle above another one
TALL 4 4 4 | a circle and a striped one
TALL 3 3 3 | a red circle. the circle is small
TALL 5 5 5 | a striped circle. the solid circle
"""
ROWS = [line.split("|") for line in TABLE.strip().splitlines()]
FAMILIES = (SHAPES, tuple(COLOURS), SIZES, FILLS, ("left of", "above", "inside"))


@pytest.mark.parametrize(
    ("expected", "caption"), ROWS, ids=[caption.strip() for _, caption in ROWS]
)
def test_table(expected: str, caption: str) -> None:
    name, *numbers = expected.split()
    right, claimed, found = map(int, numbers)
    got = score(caption, SCENES[name])
    assert (got.right, got.claimed, got.found) == (right, claimed, found)
    assert got.hallucinated == (right < claimed)


def test_numbers_of_a_score() -> None:
    got = score("a red square left of a star", PAIR)  # "red" is wrong, and so is the side
    assert (got.right, got.claimed, got.found, got.truth, got.words) == (2, 4, 2, 9, 7)
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
        assert all(found == truth for found, truth in by_kind(scene.caption, scene).values())


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
        assert 0 <= got.found <= got.truth
        assert all(0 <= value <= 1 for value in (got.precision, got.recall, got.f1))


@pytest.mark.parametrize(
    "phrase", ["a red circle ", "red ", "the circle is red. ", "no star ", "a circle above "]
)
def test_two_thousand_words_are_quick(phrase: str) -> None:
    text = phrase * (2000 // len(phrase.split()))
    best = math.inf
    for _ in range(5):
        start = time.process_time()
        score(text, TALL)
        best = min(best, time.process_time() - start)
    assert best < 0.05
