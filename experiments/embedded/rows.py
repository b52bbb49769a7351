"""The eight rows by which scorers are compared: SugarCrepe's seven and ARO's order, on scenes.

What differs between a true caption and a false one is what differs there (arXiv 2306.14610,
2210.01936), the truth is the scene's. PUBLISHED has what two real scorers reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from experiments.embedded.web import POOLS, TURNED, swap
from vizer_rl.data.scenes import RELATIONS, Scene, Thing, phrase, random_kind, sample

Pair = tuple[str, list[str]]  # the true caption, and false ones
PUBLISHED = {  # accuracy of ViT-B/32 (OpenAI) and of ViT-H/14 (LAION-2B): SugarCrepe's table, ARO
    "noun replaced": (0.91, 0.97),
    "attribute replaced": (0.80, 0.85),
    "relation replaced": (0.69, 0.72),
    "objects swapped": (0.61, 0.68),
    "attributes swapped": (0.64, 0.73),
    "false object added": (0.77, 0.92),
    "false attribute added": (0.69, 0.86),
    "order of five": (0.45, 0.26),
}
TOLERANCE = {row: 0.1 if row == "order of five" else 0.07 for row in PUBLISHED}


def replaced(scene: Scene, attribute: str, rng: np.random.Generator) -> Pair:
    """One attribute of one object (and of its equals) changed."""
    target = scene.objects[int(rng.integers(len(scene.objects)))]
    changed = getattr(swap(target, attribute, rng), attribute)
    objects = tuple(
        replace(o, **{attribute: changed}) if o.kind == target.kind else o for o in scene.objects
    )
    return scene.caption, [replace(scene, objects=objects).caption]


def attribute_replaced(scene: Scene, rng: np.random.Generator) -> Pair:
    return replaced(scene, str(rng.choice(("colour", "size", "fill"))), rng)


def relation_replaced(scene: Scene, rng: np.random.Generator) -> Pair | None:
    if not scene.relation:
        return None
    others = [r for r in (*RELATIONS, *TURNED.values()) if r != scene.relation]
    return scene.caption, [replace(scene, relation=str(rng.choice(others))).caption]


def objects_swapped(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """The two objects of the relation in each other's place."""
    if not scene.relation:
        return None
    first, second, *rest = scene.objects
    return scene.caption, [replace(scene, objects=(second, first, *rest)).caption]


def attributes_swapped(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """Two objects exchange one attribute that both have."""
    if len(scene.objects) < 2:
        return None
    first, second, *rest = scene.objects
    differ = [a for a in ("colour", "size", "fill") if getattr(first, a) != getattr(second, a)]
    if first.shape == second.shape or not differ:
        return None
    name = str(rng.choice(differ))
    objects = (
        replace(first, **{name: getattr(second, name)}),
        replace(second, **{name: getattr(first, name)}),
        *rest,
    )
    return scene.caption, [replace(scene, objects=objects).caption]


def object_added(scene: Scene, rng: np.random.Generator) -> Pair:
    """One object more, of a shape that is not there."""
    while True:
        added = Thing(*random_kind(rng), 0, 0, 1)
        if all(added.shape != o.shape for o in scene.objects):
            return scene.caption, [f"{scene.caption} and {phrase(added)}"]


def attribute_added(scene: Scene, rng: np.random.Generator) -> Pair:
    """A false attribute where the true caption has none of its kind."""
    target = scene.objects[0]
    name = str(rng.choice(("colour", "size", "fill")))
    value = getattr(target, name)
    full = phrase(target, 1)
    bare = full.replace(f" {value}", "")
    return bare, [full.replace(value, getattr(swap(target, name, rng), name))]


def order_of_five(scene: Scene, rng: np.random.Generator) -> Pair | None:
    """Against four orders of ARO: nouns and attributes, other words, trigrams, within trigrams."""
    words = scene.caption.split()
    content = {w for pool in POOLS.values() for w in pool} | {s + "s" for s in POOLS["shape"]}
    inner = [i for i, w in enumerate(words) if w in content or w == "crosses"]
    outer = [i for i in range(len(words)) if i not in inner]
    trigrams = [words[i : i + 3] for i in range(0, len(words), 3)]

    def among(places: list[int]) -> list[str]:
        new = dict(zip(places, rng.permutation(places).tolist(), strict=True))
        return [words[new.get(i, i)] for i in range(len(words))]

    shuffles: tuple[Callable[[], list[str]], ...] = (
        lambda: among(inner),
        lambda: among(outer),
        lambda: [w for i in rng.permutation(len(trigrams)) for w in trigrams[i]],
        lambda: [w for t in trigrams for w in rng.permutation(t)],
    )
    orders = [scene.caption]
    for shuffle in shuffles:
        tries = (" ".join(shuffle()) for _ in range(20))
        orders += [text for text in tries if text not in orders][:1]
    return (orders[0], orders[1:]) if len(orders) == 5 else None


ROWS: dict[str, Callable[[Scene, np.random.Generator], Pair | None]] = {
    "noun replaced": lambda scene, rng: replaced(scene, "shape", rng),
    "attribute replaced": attribute_replaced,
    "relation replaced": relation_replaced,
    "objects swapped": objects_swapped,
    "attributes swapped": attributes_swapped,
    "false object added": object_added,
    "false attribute added": attribute_added,
    "order of five": order_of_five,
}


def pairs(row: str, first: int, count: int) -> Iterator[tuple[Scene, Pair]]:
    """The first `count` scenes from number `first` that have this row, with their captions."""
    rng, number = np.random.default_rng(0), first
    while count:
        scene = sample(number)
        pair = ROWS[row](scene, rng)
        number += 1
        if pair and pair[0] not in pair[1]:
            yield scene, pair
            count -= 1
