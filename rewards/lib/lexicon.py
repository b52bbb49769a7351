"""A lexicon of a policy's own captions: their nouns, attributes, and what may replace what.

Learned from the captions alone, whatever they are about: a noun ends a phrase ("a small red
circle"), an attribute stands before it, and two words may replace each other where their contexts
are similar. Lists of colours and sizes only help where the captions hold too few.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt


def _words(text: str) -> list[str]:
    return text.split()


WORD_CLASSES = (
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
MIN_CAPTIONS = 2  # that must hold a word before it is put into another
MAX_ALTERNATIVES = 6  # words of the most similar contexts that are drawn from


def words_of(caption: str) -> list[str]:
    """The words of a caption, as written; `core` strips their punctuation."""
    return caption.split()


@lru_cache(2**16)
def core(word: str) -> str:
    """A word in lower case without punctuation around it."""
    return re.sub(r"^\W+|\W+$", "", word.lower())


def phrases(caption: str) -> Iterator[list[int]]:
    """Noun phrases of a caption, see `_phrases`."""
    return map(list, _phrases(caption))


@lru_cache(2**12)
def _phrases(caption: str) -> tuple[tuple[int, ...], ...]:
    """Noun phrases as indices of their words: attributes first, the noun last.

    The words after an opener ("a", "two", "with") up to a closer, punctuation, a verb in
    -ing ("a man riding a horse") or the end. A caption's first words need no opener, but one word
    alone ("untitled") is no phrase there.
    """
    words, result = words_of(caption), list[tuple[int, ...]]()
    phrase: list[int] | None = []
    for index, word in enumerate([*words, "."]):
        plain = core(word)
        ends = plain in CLOSERS or not plain.isalpha() or (plain.endswith("ing") and bool(phrase))
        if phrase is not None and not ends:
            phrase.append(index)
        if ends or re.search(r"\W$", word):
            if phrase and phrase != [0]:
                result.append(tuple(phrase))
            phrase = [] if plain in OPENERS else None
    return tuple(result)


def plural(word: str) -> bool:
    return word.endswith("s") and not word.endswith("ss")


@dataclass(frozen=True)
class Lexicon:
    """Word counts of captions.

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
        """Count over captions, each as often as it occurs."""
        holding, nouns, attributes = Counter[str](), Counter[str](), Counter[str]()
        before: dict[str, Counter[str]] = defaultdict(Counter)
        after: dict[str, Counter[str]] = defaultdict(Counter)
        articles: Counter[tuple[str, str]] = Counter()
        for caption in captions:
            words = [core(w) for w in words_of(caption)]
            holding.update(set(words))
            for phrase in phrases(caption):
                nouns[words[phrase[-1]]] += 1
                attributes.update(words[i] for i in phrase[:-1])
            for last, word, following in zip(["<"] + words, words, words[1:] + [">"], strict=False):
                before[word][last] += 1
                after[word][following] += 1
                articles[last, word] += last in ("a", "an")
        return cls(holding, nouns, attributes, dict(before), dict(after), articles)

    def is_noun(self, word: str) -> bool:
        """Whether a word ends phrases more often than it stands before their ends."""
        return self.nouns[word] > self.attributes[word]

    def swap_indices(self, caption: str, noun: bool) -> Iterator[int]:
        """Indices of the nouns, or of the attributes, of a caption."""
        words = [core(w) for w in words_of(caption)]
        for phrase in phrases(caption):
            if noun and self.is_noun(words[phrase[-1]]):
                yield phrase[-1]
            elif not noun:
                yield from (i for i in phrase[:-1] if not self.is_noun(words[i]))

    def alternatives(self, word: str, captions: Iterable[str]) -> list[str]:
        """Words that may replace this one and are in none of the captions, the likeliest first."""
        excluded = vocabulary(captions) | {word}
        for word_class in WORD_CLASSES:
            if word in word_class:
                used = [w for w in word_class if self.captions[w] and w != word]
                return [w for w in used or word_class if w not in excluded]
        noun = self.is_noun(word)
        candidates = [
            w
            for w in self.captions
            if w not in excluded
            and w.isalpha()
            and self.captions[w] >= MIN_CAPTIONS
            and self.nouns[w] + self.attributes[w] > 0
            and self.is_noun(w) == noun
            and plural(w) == plural(word)
        ]
        score = {w: self.similarity(word, w) for w in candidates}
        similar = sorted((w for w in candidates if score[w] > 0), key=lambda w: (-score[w], w))
        return similar[:MAX_ALTERNATIVES]

    def similarity(self, a: str, b: str) -> float:
        """Cosine of the contexts of two words, on the side on which it is lower."""
        none = Counter[str]()
        return min(_cosine(c.get(a, none), c.get(b, none)) for c in (self.before, self.after))

    def absent_nouns(self, captions: Iterable[str], count: int) -> list[str]:
        """The most frequent nouns in none of the captions, singular where there are any."""
        present = vocabulary(captions)
        nouns = [w for w, n in self.nouns.most_common() if self.is_noun(w) and n >= MIN_CAPTIONS]
        absent = [w for w in nouns if w not in present and w.rstrip("s") not in present]
        return ([w for w in absent if not plural(w)] or absent)[:count]

    def article(self, word: str) -> str:
        """ "a" or "an", as these captions write it, else as English does."""
        a, an = self.articles["a", word], self.articles["an", word]
        if a == an:
            return "an" if word[:1] in "aeiou" else "a"
        return "a" if a > an else "an"

    def replace(self, caption: str, index: int, new: str) -> str:
        """The caption with another word at this index, in its case, its article adapted."""
        words = words_of(caption)
        old = words[index]
        plain = re.sub(r"^\W+|\W+$", "", old)
        words[index] = old.replace(plain, new.capitalize() if plain[:1].isupper() else new)
        if index and core(words[index - 1]) in ("a", "an"):
            article = self.article(new)
            upper = words[index - 1][:1].isupper()
            words[index - 1] = article.capitalize() if upper else article
        return " ".join(words)


def _cosine(a: Counter[str], b: Counter[str]) -> float:
    dot = sum(n * b[k] for k, n in a.items())
    return dot / (sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values())) or 1.0)


def vocabulary(captions: Iterable[str]) -> set[str]:
    """Every word of these captions."""
    return {core(w) for caption in captions for w in words_of(caption)}
