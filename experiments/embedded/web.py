"""Web-like captions of scenes: terse, incomplete, biased and now and then wrong.

What makes a base captioner say too little is not noise but systematic omission (size, fill, the
second object are left out more often than not), and what makes it hallucinate is co-occurrence (a
circle "comes with" a yellow star). Both are here, with the web's openings, its words on style and
its large objects first; a minority of captions is detailed and true, which is how the base comes
to know more than it says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vizer_rl.data.scenes import (
    COLOURS,
    FILLS,
    NUMBERS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    plural,
)

VAGUE = ("my favourite picture", "a nice picture", "untitled", "wallpaper", "a picture of shapes")
OPENINGS = ("an image of", "a picture of", "clipart of", "a cute drawing of", "stock photo of")
STYLES = ("vector art", "minimalist design", "high quality", "free download", "flat icon")
COMPANIONS = {"circle": "a yellow star", "triangle": "a small blue square"}
TURNED = {"left of": "right of", "above": "below", "inside": "around"}
OPPOSITE = TURNED | {turned: relation for relation, turned in TURNED.items()}


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
    opening: float  # words before the first object
    style: float  # words on how it is made, behind the last
    salient: float  # large objects come first, whatever the relation


TERSE = Habit(0.20, 0.18, 0.80, 0.28, 0.60, 0.30, 0.40, 0.04, 0.60, 0.06, 0.25, 0.20, 1.0)
DETAILED = Habit(0.90, 0.90, 0.97, 0.93, 0.90, 0.90, 0.93, 0.02, 0.05, 0.0, 0.10, 0.10, 1.0)
SHARE_DETAILED = 0.15
TRUE_PART = Habit(0.6, 0.6, 0.85, 0.6, 0.6, 0.6, 0.85, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
TRUE_WHOLE = Habit(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
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
    if rng.random() < habit.salient:
        scene = salient(scene)
    first, *rest = scene.objects
    same = 1 + sum(o.kind == first.kind for o in rest)
    rest = [o for o in rest if o.kind != first.kind]
    text = _phrase(first, same, habit, rng)
    named = 1
    for index, thing in enumerate(rest):
        if rng.random() >= habit.more:
            break
        probability = habit.inside if scene.relation in ("inside", "around") else habit.beside
        name = index == 0 and scene.relation and rng.random() < probability
        text += f" {scene.relation if name else 'and'} {_phrase(thing, 1, habit, rng)}"
        named += 1
    if named == 1 and first.shape in COMPANIONS and rng.random() < habit.companion:
        text += " and " + COMPANIONS[first.shape]
    if rng.random() < habit.opening:
        text = f"{OPENINGS[int(rng.integers(len(OPENINGS)))]} {text}"
    if rng.random() < habit.style:
        text += f", {STYLES[int(rng.integers(len(STYLES)))]}"
    return text


def salient(scene: Scene) -> Scene:
    """The same scene as the web tells it: large objects first, the relation turned where need be.

    Its `caption` begins with a large object, then comes what that one is related to; the relation
    is left out where it begins with a third one.
    """
    first, *rest = sorted(scene.objects, key=lambda o: o.size != "large")
    related, relation = scene.objects[:2], scene.relation
    if relation:
        rest.sort(key=lambda o: o not in related)
        turned = relation if first == related[0] else TURNED[relation]
        relation = turned if first in related else None
    return replace(scene, objects=(first, *rest), relation=relation)


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


def swapped(scene: Scene, attribute: str, rng: np.random.Generator) -> list[Scene]:
    """One scene for each other value of one attribute of one object (and its equals).

    Of "relation", which the scene has to have, it is the opposite one alone. Nothing moves, so use
    the scenes for captions, not for pixels.
    """
    if attribute == "relation":
        return [replace(scene, relation=OPPOSITE[scene.relation or ""])]
    target = scene.objects[int(rng.integers(len(scene.objects)))]
    scenes = []
    for value in POOLS[attribute]:
        changed: Any = {attribute: value}
        objects = (replace(o, **changed) if o.kind == target.kind else o for o in scene.objects)
        scenes.append(replace(scene, objects=tuple(objects)))
    return [other for other in scenes if other != scene]
