"""Words of a class in a caption, and what else of their class could stand there.

Classes of nouns and attributes are the lexicon's, learned from captions; numbers and relations are
lists, of which only what those captions use counts. A word that has a list of its own is in no
other class: "large" may stand where "solid" does, and yet both may be true.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from rewards.lib.lexicon import WORD_CLASSES, Lexicon, core

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
RELATIONS = (
    *("left of", "right of", "above", "below", "over", "under", "inside", "outside", "behind"),
    *("in front of", "beside", "next to", "around"),
)
LISTED = frozenset(word for words in WORD_CLASSES for word in words)
LONGEST = 3  # words of a relation
REMEMBERED = 100_000  # words with the one before
MAX_PLACES = 64  # of a caption, so that one without an end costs no more than a long one


@dataclass(frozen=True)
class Place:
    """A word, or a relation of several, and its alternatives.

    start, end: its characters in the caption; word: in lower case; alternatives: of its class;
    captions: with each of these in its place; prefixes: the caption up to the end of the word, its
    own first, then with each alternative.
    """

    start: int
    end: int
    word: str
    alternatives: tuple[str, ...]
    captions: tuple[str, ...]
    prefixes: tuple[str, ...]


class WordClasses:
    """The classes of words of the captions that a lexicon was learned from."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self._others: dict[str, list[str]] = {}  # of each word that was met
        self._tails: dict[tuple[int, str], list[list[str]]] = {}  # see `tails`

    def places(self, caption: str) -> list[Place]:
        """The words of a caption, in order, that have an alternative: the first MAX_PLACES."""
        spans = [m.span() for m in re.finditer(r"\S+", caption)]
        words = [caption[slice(*span)] for span in spans]
        nominal = self.indices(caption)
        index, found_places = 0, list[Place]()
        while index < len(words) and len(found_places) < MAX_PLACES:
            if index in nominal:
                length, others = 1, self.others(core(words[index]))
            else:
                length, others = self._listed(words[index : index + LONGEST])
            if others:
                part = spans[index : index + length]
                before = words[max(0, index - 1) : index]  # an article, which another may change
                tails = self.tails(before, words[index : index + length], others)
                found_places.append(_place(caption, part, words, index, others, tails))
            index += length
        return found_places

    def indices(self, caption: str) -> set[int]:
        """Indices of the words that have a class, beside numbers and relations."""
        return {i for noun in (True, False) for i in self.lexicon.swap_indices(caption, noun)}

    def others(self, word: str) -> list[str]:
        """The other words of the class of one of these."""
        if word not in self._others:
            others = (w for w in self.lexicon.alternatives(word, []) if self.lexicon.captions[w])
            self._others[word] = [w for w in others if (w in LISTED) == (word in LISTED)]
        return self._others[word]

    def tails(self, before: list[str], own: list[str], others: list[str]) -> list[list[str]]:
        """The word before and a word of a class or relation, then the same with each other one."""
        first = [*before, " ".join(own)]
        key = len(own), " ".join(first)
        if key not in self._tails:
            if len(self._tails) > REMEMBERED:
                self._tails.clear()
            replace = self.lexicon.replace
            self._tails[key] = [first] + [
                replace(key[1], len(before), other).split()
                if len(own) == 1
                else [*before, first[-1].lower().replace(core(first[-1]), other)]
                for other in others
            ]
        return self._tails[key]

    def _listed(self, words: list[str]) -> tuple[int, list[str]]:
        """How many words the longest number or relation has that stands first, and the others."""
        plain = [core(word) for word in words]
        for length in range(len(plain), 0, -1):
            phrase = " ".join(plain[:length])
            for names in (NUMBERS, RELATIONS):
                if phrase in names:
                    return length, [n for n in names if n != phrase and _used(n, self.lexicon)]
        return 1, []


def _used(phrase: str, lexicon: Lexicon) -> bool:
    """Whether the lexicon's captions have each word of a phrase behind the one before."""
    words = phrase.split()
    if not all(lexicon.captions[word] for word in words):
        return False
    return all(lexicon.after[a][b] for a, b in pairwise(words))


def _place(
    caption: str,
    spans: list[tuple[int, int]],
    words: list[str],
    index: int,
    others: list[str],
    tails: list[list[str]],
) -> Place:
    """The place of the words that have these spans and begin at this index; tails: see there."""
    start, end = spans[0][0], spans[-1][1]
    inner = re.search(r"\w(.*\w)?", caption[start:end], re.DOTALL)
    assert inner is not None  # a word of a class has letters
    head, rest = words[: max(0, index - 1)], words[index + len(spans) :]
    return Place(
        start + inner.start(),
        start + inner.end(),
        core(" ".join(words[index : index + len(spans)])),
        tuple(others),
        tuple(" ".join([*head, *tail, *rest]) for tail in tails[1:]),
        tuple(_trimmed(" ".join([*head, *tail])) for tail in tails),
    )


def _trimmed(text: str) -> str:
    """A text without the punctuation at its end."""
    return text if text[-1:].isalnum() else re.sub(r"\W+$", "", text)
