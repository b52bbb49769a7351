"""Fact score: the claims of a caption checked against the ground truth of a drawn scene.

A scene's facts: shape, colour, size and fill of each object, the number of each shape that occurs
more than once, and the principal relation. Words without a shape ("something red") and totals
("three shapes") count for precision only; a denial ("no star") is right or wrong, never recalled;
an object, shape or colour that no scene has ("a brown hexagon") is a wrong claim.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from ....data.scenes import Scene
from .claims import Claims, Mention, Relation, parse

Thing = Mapping[str, Any]  # an object as scenes.json has it
Fact = tuple[Any, ...]  # ("object", index), ("colour", index), ("count", shape), ("relation",)
Match = Mapping[int, int]  # mention -> truth object
KINDS = ("object", "colour", "size", "fill", "count", "relation")
CLEAR = 12  # pixels between two centres before one is "left of" or "above" the other
INVERSE = {"right of": "left of", "below": "above", "around": "inside"}


@dataclass(frozen=True)
class FactScore:
    """Claims (right of claimed) and truth facts (recalled of truth) of one caption."""

    right: int
    claimed: int
    truth: int
    recalled: int
    hallucinated: bool  # some claim is wrong
    words: int

    @property
    def precision(self) -> float:
        """Share of the claims that are right; 0 when nothing is claimed."""
        return self.right / self.claimed if self.claimed else 0.0

    @property
    def recall(self) -> float:
        return self.recalled / self.truth

    @property
    def f1(self) -> float:
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def _truth(scene: Scene | Mapping[str, Any]) -> tuple[list[Thing], str | None]:
    stored = asdict(scene) if isinstance(scene, Scene) else scene
    return list(stored["objects"]), stored["relation"]


def facts(scene: Scene | Mapping[str, Any]) -> list[Fact]:
    """The facts of a scene, which a full caption states."""
    things, relation = _truth(scene)
    result: list[Fact] = [(kind, i) for i in range(len(things)) for kind in KINDS[:4]]
    counts = Counter(thing["shape"] for thing in things)
    result += [("count", shape) for shape, n in counts.items() if n > 1]
    return result + [("relation",)] * bool(relation)


def holds(a: Thing, relation: str, b: Thing) -> bool:
    """Whether `a` is left of, above or inside `b`; what is inside is not also left of it."""
    apart = math.dist((a["x"], a["y"]), (b["x"], b["y"]))
    if relation == "inside" or apart < max(a["r"], b["r"]):
        return relation == "inside" and apart < b["r"] and a["r"] < b["r"]
    axis = "x" if relation == "left of" else "y"
    return bool(b[axis] - a[axis] >= CLEAR)


def score(caption: str, scene: Scene | Mapping[str, Any]) -> FactScore:
    """How many claims of the caption are right, and how much of the scene it states."""
    claims = parse(caption)
    right, claimed, recalled = _judge(claims, *_truth(scene))
    truth = len(facts(scene))
    return FactScore(right, claimed, truth, len(recalled), right < claimed, len(caption.split()))


def by_kind(caption: str, scene: Scene | Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """(recalled, truth) for each kind of fact."""
    _, _, recalled = _judge(parse(caption), *_truth(scene))
    counts, totals = Counter(f[0] for f in recalled), Counter(f[0] for f in facts(scene))
    return {kind: (counts[kind], totals[kind]) for kind in KINDS}


def _judge(claims: Claims, things: list[Thing], relation: str | None) -> tuple[int, int, set[Fact]]:
    """Right claims, claims, and facts recalled, under the match with most claims right."""
    relations = _relations(claims)
    matches = _matches(claims, things)
    judged = [_matched(claims, things, match, relations, relation) for match in matches]
    right, recalled = max(judged, key=lambda pair: (pair[0], len(pair[1])))
    claimed = len(relations)
    for m in claims.mentions:
        claimed += bool(m.shape) * (1 + len(m.attributes)) + len(m.denied)
    for shapeless_right, shapeless_claimed in _shapeless(claims, things):
        right, claimed = right + shapeless_right, claimed + shapeless_claimed
    counts = Counter(m.shape for m in claims.mentions if m.shape)
    truth = Counter(thing["shape"] for thing in things)
    for shape, n in counts.items():
        if n > 1 and shape not in claims.vague:
            right, claimed = right + (truth[shape] == n), claimed + 1
            recalled |= {("count", shape)} if truth[shape] == n else set()
    return right, claimed, recalled


def _relations(claims: Claims) -> set[Relation]:
    """Relations, "right of" turned to "left of"; none with an object of unknown shape."""
    turned = {
        (b, INVERSE[word], a) if word in INVERSE else (a, word, b)
        for a, word, b in claims.relations
    }
    return {(a, w, b) for a, w, b in turned if all(claims.mentions[i].shape for i in a + b)}


def _agreed(mention: Mention, thing: Thing) -> list[str]:
    return [kind for kind, value in mention.attributes if thing[kind] == value]


def _matches(claims: Claims, things: list[Thing]) -> Iterator[dict[int, int]]:
    """Candidate matches: each object with no mention or one of its few likeliest."""
    related = {i for a, _, b in claims.relations for i in a + b}
    pools: list[list[int | None]] = []
    for thing in things:
        same = [i for i, m in enumerate(claims.mentions) if m.shape == thing["shape"]]
        same.sort(key=lambda i: (-len(_agreed(claims.mentions[i], thing)), i not in related))
        pools.append([None, *same[: len(things)]])
    for choice in product(*pools):
        match = {mention: i for i, mention in enumerate(choice) if mention is not None}
        if len(match) == sum(mention is not None for mention in choice):
            yield match


def _matched(
    claims: Claims,
    things: list[Thing],
    match: Match,
    relations: set[Relation],
    principal: str | None,
) -> tuple[int, set[Fact]]:
    """Right claims about shapes, attributes and relations under a match; the facts recalled."""
    recalled: set[Fact] = set()
    right = 0
    for mention, i in match.items():
        m = claims.mentions[mention]
        recalled |= {("object", i)} | {(kind, i) for kind in _agreed(m, things[i])}
        right += sum(things[i][kind] != value for kind, value in m.denied)
    right += len(recalled)
    for subject, word, object_ in relations:
        pairs = [(match.get(a, -1), match.get(b, -1)) for a, b in product(subject, object_)]
        if all(min(p) >= 0 and holds(things[p[0]], word, things[p[1]]) for p in pairs):
            right += 1
            recalled |= {("relation",)} if (0, 1) in pairs and word == principal else set()
    return right, recalled


def _shapeless(claims: Claims, things: list[Thing]) -> Iterator[tuple[int, int]]:
    """(right, claimed) of the claims about unknown things, of denials and of totals."""
    loose = Counter(a for m in claims.mentions if not m.shape for a in m.attributes)
    for (kind, value), n in loose.items():
        yield min(n, sum(thing[kind] == value for thing in things)), n
    for m in claims.mentions:
        if not m.shape:
            yield sum(any(t[k] != v for t in things) for k, v in m.denied), 0
    for shape, attributes in claims.denials:
        present = any(
            shape in ("", thing["shape"]) and all(thing[k] == v for k, v in attributes)
            for thing in things
        )
        yield not present, 1
    for total in claims.totals:
        yield total == len(things), 1
