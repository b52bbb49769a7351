"""The words of a policy's own captions: which are nouns, which attributes, what may replace what.

Learned from the captions alone, whatever they are about: a noun is what ends a phrase ("a small red
circle"), an attribute what stands before it, and two words may replace each other where they keep
the same company. Lists of colours and sizes only help where the captions hold too few.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt


def _words(text: str) -> list[str]:
    return text.split()


CLASSES = (
    _words("red orange yellow green blue purple pink black white brown grey gray"),
    _words("small large big little tiny huge tall short long wide narrow"),
)
OPENERS = set(  # after these a phrase may begin
    _words(
        """a an the this that these those its his her their some many several no one two three four
        five six seven eight nine ten and or of with in on at by near under over above below behind
        beside inside between through from to into onto along around"""
    )
)
CLOSERS = OPENERS | set(
    _words(
        """is are was were be been being has have had it they he she there here who which what where
        when while as for not very up down out off left right next front back top but than then so
        can will may"""
    )
)
FOUND = 2  # captions that must hold a word before it is put into another
LIKELY = 6  # how many of the words in most alike company are drawn from


def words_of(caption: str) -> list[str]:
    """The words of a caption, as written; `core` takes off what clings to them."""
    return caption.split()


def core(word: str) -> str:
    """A word in lower case without punctuation around it."""
    return re.sub(r"^\W+|\W+$", "", word.lower())


def phrases(caption: str) -> Iterator[list[int]]:
    """Noun phrases as positions of their words: attributes first, the noun last.

    A run of words after an opener ("a", "two", "with") up to a closer, punctuation, a verb in
    -ing ("a man riding a horse") or the end. A caption's first words need no opener, but one word
    alone ("untitled") is no phrase there.
    """
    words = words_of(caption)
    run: list[int] | None = []
    for at, word in enumerate([*words, "."]):
        plain = core(word)
        ends = plain in CLOSERS or not plain.isalpha() or (plain.endswith("ing") and bool(run))
        if run is not None and not ends:
            run.append(at)
        if ends or re.search(r"\W$", word):
            if run and run != [0]:
                yield run
            run = [] if plain in OPENERS else None


def plural(word: str) -> bool:
    return word.endswith("s") and not word.endswith("ss")


@dataclass(frozen=True)
class Lexicon:
    """What was learned from captions.

    captions: how many hold each word; nouns, attributes: how often a word was either; before,
    after: the words next to each word; articles: how often "a" or "an" stood before it.
    """

    captions: Counter[str]
    nouns: Counter[str]
    attributes: Counter[str]
    before: dict[str, Counter[str]]
    after: dict[str, Counter[str]]
    articles: Counter[tuple[str, str]]

    @classmethod
    def learn(cls, captions: Iterable[str]) -> Lexicon:
        """Count over captions, each as often as it was said."""
        held, nouns, attributes = Counter[str](), Counter[str](), Counter[str]()
        before: dict[str, Counter[str]] = defaultdict(Counter)
        after: dict[str, Counter[str]] = defaultdict(Counter)
        articles: Counter[tuple[str, str]] = Counter()
        for caption in captions:
            words = [core(w) for w in words_of(caption)]
            held.update(set(words))
            for run in phrases(caption):
                nouns[words[run[-1]]] += 1
                attributes.update(words[i] for i in run[:-1])
            for last, word, following in zip(["<"] + words, words, words[1:] + [">"], strict=False):
                before[word][last] += 1
                after[word][following] += 1
                articles[last, word] += last in ("a", "an")
        return cls(held, nouns, attributes, dict(before), dict(after), articles)

    def is_noun(self, word: str) -> bool:
        """Whether a word ends phrases more often than it stands before their ends."""
        return self.nouns[word] > self.attributes[word]

    def swaps(self, caption: str, noun: bool) -> Iterator[int]:
        """Positions of the nouns, or of the attributes, of a caption."""
        words = [core(w) for w in words_of(caption)]
        for run in phrases(caption):
            if noun and self.is_noun(words[run[-1]]):
                yield run[-1]
            elif not noun:
                yield from (i for i in run[:-1] if not self.is_noun(words[i]))

    def alternatives(self, word: str, said: Iterable[str]) -> list[str]:
        """Words that may stand for this one and are in none of the `said`, the likeliest first."""
        here = {core(w) for caption in said for w in words_of(caption)} | {word}
        for known in CLASSES:
            if word in known:
                told = [w for w in known if self.captions[w] and w != word]
                return [w for w in told or known if w not in here]
        noun = self.is_noun(word)
        alike = [
            w
            for w in self.captions
            if w not in here
            and w.isalpha()
            and self.captions[w] >= FOUND
            and self.nouns[w] + self.attributes[w] > 0
            and self.is_noun(w) == noun
            and plural(w) == plural(word)
        ]
        near = {w: self.likeness(word, w) for w in alike}
        return sorted((w for w in alike if near[w] > 0), key=lambda w: (-near[w], w))[:LIKELY]

    def likeness(self, one: str, other: str) -> float:
        """How alike the company of two words is, on the side on which it is less so."""
        none = Counter[str]()
        sides = (self.before, self.after)
        return min(_cosine(side.get(one, none), side.get(other, none)) for side in sides)

    def absent_nouns(self, said: Iterable[str], count: int) -> list[str]:
        """The most frequent nouns that none of the `said` holds, singular where there are any."""
        here = {core(w) for caption in said for w in words_of(caption)}
        nouns = [w for w, n in self.nouns.most_common() if self.is_noun(w) and n >= FOUND]
        free = [w for w in nouns if w not in here and w.rstrip("s") not in here]
        return ([w for w in free if not plural(w)] or free)[:count]

    def article(self, word: str) -> str:
        """ "a" or "an", as these captions write it, else as English does."""
        a, an = self.articles["a", word], self.articles["an", word]
        if a == an:
            return "an" if word[:1] in "aeiou" else "a"
        return "a" if a > an else "an"

    def replace(self, caption: str, at: int, new: str) -> str:
        """The caption with another word at this position, in its case, its article made to fit."""
        words = words_of(caption)
        old = words[at]
        plain = re.sub(r"^\W+|\W+$", "", old)
        words[at] = old.replace(plain, new.capitalize() if plain[:1].isupper() else new)
        if at and core(words[at - 1]) in ("a", "an"):
            given = words[at - 1]
            made = self.article(new)
            words[at - 1] = made.capitalize() if given[:1].isupper() else made
        return " ".join(words)


def _cosine(a: Counter[str], b: Counter[str]) -> float:
    dot = sum(n * b[k] for k, n in a.items())
    return dot / (sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values())) or 1.0)


def vocabulary(captions: Sequence[str]) -> set[str]:
    """Every word of these captions."""
    return {core(w) for caption in captions for w in words_of(caption)}
