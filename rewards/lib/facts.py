"""Facts of a caption: which of its words say again what it has said of the same thing.

A noun phrase that has all the words of another one, or none that the other has not, may name the
same thing: "a circle and a red circle", "two dogs and a dog". Their common words are one fact each,
as is a word twice in one phrase, or outside of all: "a striped striped". "A small red circle and a
small blue circle" are two things. Two things have one relation, which "left of" and, the other way
round, "right of" say alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewards.lib.lexicon import core, phrases, words_of
from rewards.lib.text import lemma
from rewards.lib.word_classes import NUMBERS, RELATIONS, Place

Thing = frozenset[str]  # the words of a noun phrase, with its number


def repeated(caption: str, places: Sequence[Place]) -> list[bool]:
    """Per place whether the caption has said so before."""
    words, things = [core(word) for word in words_of(caption)], dict[int, int]()
    named = list[Thing]()  # in order; things: the number there of the word of an index
    for phrase in phrases(caption):
        begin = phrase[0] - (phrase[0] > 0 and words[phrase[0] - 1] in NUMBERS)
        indices = range(begin, phrase[-1] + 1)
        things |= dict.fromkeys(indices, len(named))
        named.append(frozenset(lemma(words[i]) for i in indices))
    related, result = set[frozenset[Thing]](), list[bool]()
    before = set[tuple[int | None, str]]()  # thing, or none, and word
    for place in places:
        index = len(caption[: place.start].split())
        if place.word in RELATIONS:
            sides = frozenset(_nearest(things, named, index, step) for step in (-1, 1))
            result.append(sides in related)
            related.add(sides)
        else:
            own, word = things.get(index), lemma(place.word)
            same = [t for t in named[:own] if t <= named[own] or named[own] <= t] if own else []
            result.append((own, word) in before or any(word in thing for thing in same))
            before.add((own, word))
    return result


def _nearest(things: dict[int, int], named: list[Thing], index: int, step: int) -> Thing:
    """The thing next to a word, before (step -1) or behind it (1); empty where there is none."""
    beside = [i for i in things if (i - index) * step > 0]
    return named[things[min(beside, key=lambda i: abs(i - index))]] if beside else frozenset()
