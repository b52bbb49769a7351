"""Compositional attacks, those of SugarCrepe and ARO: what real CLIPs fail at.

Pure text, like `attacks`. SugarCrepe (arXiv 2306.14610) replaces, swaps and adds; ARO (arXiv
2210.01936) asks for the right word order of five. Theirs are checked by people or by language
models; these, in an audit, by its judges, and in a scorer's passport by the policy.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from itertools import combinations

from rewards.lib.lexicon import (
    MIN_CAPTIONS,
    WORD_CLASSES,
    Lexicon,
    core,
    phrases,
    plural,
    vocabulary,
    words_of,
)

from .attacks import ATTACKS, Attack, Pair, Subject

CONVERSE = (  # of a longer phrase before any of its parts
    ("left of", "right of"),
    ("in front of", "behind"),
    ("on top of", "underneath"),
    ("above", "below"),
    ("over", "under"),
    ("inside", "outside"),
    ("on", "under"),
)
SYMMETRIC = {"and", "or", "with", "near", "beside", "next", "to", "by", "a", "an", "the", "other"}
OF_FIVE = "order of five"  # one choice: the right one is above all four others
MAX_ADDED = 12  # nouns that one is drawn from, the most frequent first
TRIES = 20  # shuffles until one is new


def relation_replaced(subject: Subject, lexicon: Lexicon, rng: random.Random) -> list[Pair]:
    """One spatial relation turned into its converse."""
    converse = {a: b for pair in reversed(CONVERSE) for a, b in (pair, pair[::-1])}
    names = sorted(converse, key=len, reverse=True)
    relation = re.search(rf"\b({'|'.join(names)})\b", subject.caption)
    if relation is None:
        return []
    start, end = relation.span()
    attacked = subject.caption[:start] + converse[relation[0]] + subject.caption[end:]
    return [(subject.caption, attacked)]


def objects_exchanged(subject: Subject, lexicon: Lexicon, rng: random.Random) -> list[Pair]:
    """Two noun phrases in each other's place, where what is between them is not symmetric."""
    words = words_of(subject.caption)
    places = []
    for first, second in combinations(phrases(subject.caption), 2):
        between = {core(w) for w in words[first[-1] + 1 : second[0]]}
        nouns = core(words[first[-1]]), core(words[second[-1]])
        if between - SYMMETRIC and nouns[0] != nouns[1] and plural(nouns[0]) == plural(nouns[1]):
            places.append((first, second))
    if not places:
        return []
    first, second = rng.choice(places)
    bare = [[core(words[i]) for i in phrase] for phrase in (second, first)]
    for phrase, new in zip((second, first), bare[::-1], strict=True):  # the last first
        end = re.sub(r"^.*\w", "", words[phrase[-1]])  # the punctuation stays where it is
        words[phrase[0] : phrase[-1] + 1] = [*new[:-1], new[-1] + end]
        before = phrase[0] - 1
        if before >= 0 and core(words[before]) in ("a", "an"):
            words[before] = lexicon.article(new[0])
    return [(subject.caption, _as_sentence(subject.caption, words))]


def attributes_exchanged(subject: Subject, lexicon: Lexicon, rng: random.Random) -> list[Pair]:
    """Two attributes of one kind in each other's place, of two different nouns."""
    words = [core(w) for w in words_of(subject.caption)]
    places = [
        (i, j)
        for first, second in combinations(phrases(subject.caption), 2)
        if words[first[-1]] != words[second[-1]]
        for i in first[:-1]
        for j in second[:-1]
        if words[i] != words[j] and _same_kind(words[i], words[j], lexicon)
    ]
    if not places:
        return []
    i, j = rng.choice(places)
    attacked = lexicon.replace(subject.caption, i, words[j])
    return [(subject.caption, lexicon.replace(attacked, j, words[i]))]


def object_added(subject: Subject, lexicon: Lexicon, rng: random.Random) -> list[Pair]:
    """One frequent noun that is in no caption of this image, appended."""
    nouns = lexicon.absent_nouns(subject.captions, MAX_ADDED)
    if not nouns:
        return []
    noun = rng.choice(nouns)
    caption = subject.caption.rstrip(".!?")
    return [(subject.caption, f"{caption} and {lexicon.article(noun)} {noun}")]


def attribute_added(subject: Subject, lexicon: Lexicon, rng: random.Random) -> list[Pair]:
    """One attribute that is in no caption of this image, put before a noun without one like it."""
    words, present = words_of(subject.caption), vocabulary(subject.captions)
    frequent = [w for w, n in lexicon.attributes.most_common() if n >= MIN_CAPTIONS]
    absent = [w for w in frequent if w not in present and not lexicon.is_noun(w)]
    places = [
        (phrase[0], new)
        for phrase in phrases(subject.caption)
        for new in absent[:MAX_ADDED]
        if not any(_same_kind(new, core(words[i]), lexicon) for i in phrase[:-1])
    ]
    if not places:
        return []
    index, new = rng.choice(places)
    words.insert(index, new)
    if index and core(words[index - 1]) in ("a", "an"):
        words[index - 1] = lexicon.article(new)
    return [(subject.caption, _as_sentence(subject.caption, words))]


def order_of_five(subject: Subject, lexicon: Lexicon, rng: random.Random) -> list[Pair]:
    """ARO's four shuffles: nouns and attributes, all other words, trigrams, words within them."""
    words = words_of(subject.caption)
    content = {i for noun in (True, False) for i in lexicon.swap_indices(subject.caption, noun)}
    others = set(range(len(words))) - content
    trigrams = [words[i : i + 3] for i in range(0, len(words), 3)]
    shuffles: tuple[Callable[[], list[str]], ...] = (
        lambda: _shuffled_places(words, content, rng),
        lambda: _shuffled_places(words, others, rng),
        lambda: [w for t in rng.sample(trigrams, len(trigrams)) for w in t],
        lambda: [w for t in trigrams for w in rng.sample(t, len(t))],
    )
    orders = [subject.caption]
    for shuffle in shuffles:
        tries = (" ".join(shuffle()) for _ in range(TRIES))
        orders += [next((text for text in tries if text not in orders), "")]
    return [(subject.caption, text) for text in orders[1:]] if all(orders) else []


def negated(subject: Subject, lexicon: Lexicon, rng: random.Random) -> list[Pair]:
    """What the caption names first, denied: "no small red circle"."""
    words, first = words_of(subject.caption), next(phrases(subject.caption), None)
    if first is None:
        return []
    start = first[0]
    keep = start == 0 or core(words[start - 1]) not in ("a", "an", "the")
    words[start - (not keep) : start] = ["no"]
    return [(subject.caption, _as_sentence(subject.caption, words))]


def _same_kind(a: str, b: str, lexicon: Lexicon) -> bool:
    """Whether two attributes say the same kind of thing: two colours, two words used alike."""
    kinds = [next((k for k, c in enumerate(WORD_CLASSES) if w in c), None) for w in (a, b)]
    return kinds[0] == kinds[1] and (kinds[0] is not None or lexicon.similarity(a, b) > 0)


def _shuffled_places(words: list[str], places: set[int], rng: random.Random) -> list[str]:
    """The words with those of these places shuffled among them."""
    order = sorted(places)
    new = dict(zip(order, rng.sample(order, len(order)), strict=True))
    return [words[new.get(i, i)] for i in range(len(words))]


def _as_sentence(caption: str, words: list[str]) -> str:
    """The words as a caption that begins with a capital where this one does."""
    text = " ".join(words)
    return text[:1].upper() + text[1:] if caption[:1].isupper() else text


COMPOSITIONS = (
    Attack("relation replaced", "into its converse", "certainty", relation_replaced, True),
    Attack("objects exchanged", "two noun phrases", "certainty", objects_exchanged, True),
    Attack("attributes exchanged", "of two nouns", "certainty", attributes_exchanged, True),
    Attack("object added", "that is not there", "region_grounding", object_added, True),
    Attack("attribute added", "that is not there", "certainty", attribute_added, True),
    Attack(OF_FIVE, "against four shuffles", "fluency", order_of_five),
    Attack("negated", "what it names first, denied", "fluency", negated, True),
)
ALL_ATTACKS = (*ATTACKS, *COMPOSITIONS)
