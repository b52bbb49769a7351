"""Rivals of a word: what may stand in its place and be as true, and so says nothing against it.

"a" may be said of two stars, and what is left of a thing may be above it too. A certainty among
such would be low for what is right; so they are read last, behind the word's class, and count only
where looking is compared with not looking (`reliability.sight`).
"""

from __future__ import annotations

import re
from dataclasses import replace

from torch import Tensor

from rewards.lib.word_classes import NUMBERS, Place

CONTRARY = (
    *(("left of", "right of"), ("above", "below"), ("over", "under"), ("inside", "outside")),
    *(("inside", "around"), ("behind", "in front of")),
)
PAIRS = frozenset(CONTRARY) | {(b, a) for a, b in CONTRARY}


def with_rivals(caption: str, place: Place) -> Place:
    """A place of this caption whose prefixes end with those of its rivals.

    Of a number above one that is the article; of a relation whatever is not its contrary.
    """
    if place.word in NUMBERS[1:]:
        return replace(place, prefixes=(*place.prefixes, _article(caption, place)))
    contrary = [k for k, other in enumerate(place.alternatives) if (place.word, other) in PAIRS]
    if not contrary:
        return place
    others = [k for k in range(len(place.alternatives)) if k not in contrary]
    own, *prefixes = place.prefixes
    return replace(
        place,
        alternatives=tuple(place.alternatives[k] for k in contrary),
        captions=tuple(place.captions[k] for k in contrary),
        prefixes=(own, *(prefixes[k] for k in (*contrary, *others))),
    )


def within_class(probabilities: Tensor, place: Place) -> Tensor:
    """(1 + A,) of (1 + A + rivals,): the word and its alternatives alone; sum 1."""
    count = 1 + len(place.alternatives)
    if len(place.prefixes) == count:
        return probabilities
    return probabilities[:count] / probabilities[:count].sum()


def _article(caption: str, place: Place) -> str:
    """The caption up to a place, with "a" or "an" in it."""
    vowel = re.match(r"\W*[aeiou]", caption[place.end :], re.IGNORECASE)
    article = "an" if vowel else "a"
    if caption[place.start].isupper():
        article = article.capitalize()
    return " ".join(f"{caption[: place.start]}{article}".split())
