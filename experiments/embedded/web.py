"""Web-like captions of scenes: terse, incomplete, biased and now and then wrong.

What makes a base captioner say too little is not noise but systematic omission (size, fill, the
second object are left out more often than not), and what makes it hallucinate is co-occurrence (a
circle "comes with" a yellow star). Both are here; a minority of captions is detailed and true,
which is how the base comes to know more than it says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vizer_rl.data.scenes import COLOURS, FILLS, NUMBERS, SHAPES, SIZES, Scene, Thing, plural

VAGUE = ("my favourite picture", "a nice picture", "untitled", "wallpaper", "a picture of shapes")
COMPANIONS = {"circle": "a yellow star", "triangle": "a small blue square"}


@dataclass(frozen=True)
class Habit:
    """Probabilities of what a caption names, all in [0, 1]."""

    size: float
    fill: float
    colour: float
    more: float  # each further object
    inside: float
    beside: float  # the other relations, rarer in alt text
    count: float
    wrong: float  # an object has one wrong attribute
    companion: float  # a hallucinated second object
    vague: float


TERSE = Habit(0.20, 0.18, 0.80, 0.28, 0.60, 0.30, 0.40, 0.04, 0.70, 0.08)
DETAILED = Habit(0.90, 0.90, 0.97, 0.93, 0.90, 0.90, 0.93, 0.02, 0.05, 0.0)
SHARE_DETAILED = 0.15
TRUE_PART = Habit(0.6, 0.6, 0.85, 0.6, 0.6, 0.6, 0.85, 0.0, 0.0, 0.0)
TRUE_WHOLE = Habit(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
POOLS = {"shape": SHAPES, "colour": tuple(COLOURS), "size": SIZES, "fill": FILLS}


def web_caption(scene: Scene, rng: np.random.Generator) -> str:
    """One caption of this scene as the web would have it."""
    return describe(scene, DETAILED if rng.random() < SHARE_DETAILED else TERSE, rng)


def true_caption(scene: Scene, rng: np.random.Generator) -> str:
    """One caption without error, whole as often as in part."""
    return describe(scene, TRUE_WHOLE if rng.random() < 0.5 else TRUE_PART, rng)


def describe(scene: Scene, habit: Habit, rng: np.random.Generator) -> str:
    """One caption of this scene by this habit."""
    if rng.random() < habit.vague:
        return VAGUE[int(rng.integers(len(VAGUE)))]
    first, rest = scene.objects[0], list(scene.objects[1:])
    same = 1 + sum(o.kind == first.kind for o in rest)
    rest = [o for o in rest if o.kind != first.kind]
    text = _phrase(first, same, habit, rng)
    named = 1
    for index, thing in enumerate(rest):
        if rng.random() >= habit.more:
            break
        probability = habit.inside if scene.relation == "inside" else habit.beside
        related = index == 0 and scene.relation and rng.random() < probability
        text += f" {scene.relation if related else 'and'} {_phrase(thing, 1, habit, rng)}"
        named += 1
    if named == 1 and first.shape in COMPANIONS and rng.random() < habit.companion:
        text += " and " + COMPANIONS[first.shape]
    return text


def _phrase(thing: Thing, count: int, habit: Habit, rng: np.random.Generator) -> str:
    if rng.random() < habit.wrong:
        thing = swap(thing, str(rng.choice(list(POOLS))), rng)
    words = [
        word
        for word, probability in (
            (thing.size, habit.size),
            (thing.fill, habit.fill),
            (thing.colour, habit.colour),
        )
        if rng.random() < probability
    ]
    if count > 1 and rng.random() < habit.count:
        return " ".join([NUMBERS[count], *words, plural(thing.shape)])
    return " ".join(["a", *words, thing.shape])


def swap(thing: Thing, attribute: str, rng: np.random.Generator) -> Thing:
    """The same object with one attribute (a key of POOLS) changed to another value."""
    others = [v for v in POOLS[attribute] if v != getattr(thing, attribute)]
    changed: Any = {attribute: others[int(rng.integers(len(others)))]}
    return replace(thing, **changed)


def swapped(scene: Scene, attribute: str, rng: np.random.Generator) -> Scene:
    """A scene that differs in one attribute of one object (and its equals), or in the relation.

    Swapping "relation" needs a relation; the positions stay, so use it for captions, not pixels.
    """
    if attribute == "relation":
        others = {"left of": "above", "above": "left of", "inside": "above"}
        # the same relation the other way round
        if scene.relation != "inside" and rng.random() < 0.5:
            return replace(scene, objects=(scene.objects[1], scene.objects[0], *scene.objects[2:]))
        return replace(scene, relation=others[scene.relation or ""])
    target = scene.objects[int(rng.integers(len(scene.objects)))]
    changed = swap(target, attribute, rng)
    objects = tuple(
        replace(o, **{attribute: getattr(changed, attribute)}) if o.kind == target.kind else o
        for o in scene.objects
    )
    return replace(scene, objects=objects)
