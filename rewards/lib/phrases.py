"""Noun phrases of captions: which count once, and which attribute swaps are fair for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


def unique(phrases: Sequence[str]) -> list[str]:
    """The phrases in order, without one all whose words another one has too."""
    first = list(dict.fromkeys(phrases))
    words = [set(p.split()) for p in first]
    return [p for p, own in zip(first, words, strict=True) if not any(own < w for w in words)]


class Swaps:
    """Adjectives that exclude each other, learnt from phrases: those never said of one thing.

    "red" and "blue" never stand in one phrase, "red" and "small" do; so "blue car" is a fair swap
    for "red car" and "small car" is not. No list of colours is needed, and no label.
    """

    def __init__(self, phrases: Iterable[str], max_swaps: int) -> None:
        """`max_swaps`: for each adjective, the most frequent first."""
        together: dict[str, Counter[str]] = {}
        for phrase in phrases:
            adjectives = phrase.split()[:-1]
            for word in adjectives:
                together.setdefault(word, Counter()).update(adjectives)
        often = sorted(together, key=lambda w: (-together[w][w], w))
        self.others = {w: [o for o in often if o not in together[w]][:max_swaps] for w in together}

    def __call__(self, phrase: str) -> list[str]:
        """The phrase with one adjective changed, in every fair way."""
        words = phrase.split()
        return [
            " ".join([*words[:position], other, *words[position + 1 :]])
            for position, word in enumerate(words[:-1])
            for other in self.others.get(word, ())
        ]
