"""Captions made worse in one known way each: a reward must rank each below what it was made from.

Pure text: no image, no model, no label. What an attack knows of an image is what the frozen policy
said about it and about others (`Subject`), and the words of all its captions (`Lexis`). The list is
the "reward unit tests" of the literature on hacked caption rewards: repetition and noun stuffing
(Cho et al. 2022, arXiv 2205.13115; Ahmadi & Agrawal 2023, arXiv 2305.14998), swapped words
(ARO, arXiv 2210.01936), generic captions, and text past the context of a CLIP (arXiv 2403.15378).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from .lexicon import CLOSERS, Lexicon, core, words_of

Pair = tuple[str, str]  # what it was made from, what it became
GENERIC = ("a photo", "an image", "a picture of something")
STYLE = "high quality stock photo"
STUFFED = 5  # nouns appended
SWAPS = 3  # words of each kind swapped in one caption, one at a time


@dataclass(frozen=True)
class Subject:
    """A caption to attack and what is known about its image.

    caption: the original; said: all that the policy said about the image; neighbour: a caption of a
    look-alike, None where there is none; stranger: a caption of an image that is not alike;
    context: tokens that the scorer reads.
    """

    caption: str
    said: tuple[str, ...]
    neighbour: str | None
    stranger: str
    context: int


Make = Callable[[Subject, Lexicon, random.Random], list[Pair]]


@dataclass(frozen=True)
class Attack:
    """A perturbation: its name, what it does, what guards against it, and what makes it.

    contested: whether the outcome may be right after all (another noun may be true of the image),
    so that only pairs count in which judges other than the reward prefer the original.
    """

    name: str
    about: str
    guard: str
    make: Make
    contested: bool = False


def shuffled_words(subject: Subject, lexis: Lexicon, rng: random.Random) -> list[Pair]:
    """The same words in another order."""
    words = words_of(subject.caption)
    mixed = list(words)
    for _ in range(10):
        rng.shuffle(mixed)
        if mixed != words:
            break
    return [(subject.caption, " ".join(mixed))]


def repeated_caption(subject: Subject, lexis: Lexicon, rng: random.Random) -> list[Pair]:
    """The caption twice."""
    joint = " " if subject.caption[-1:] in (".", "!", "?") else " and "
    return [(subject.caption, subject.caption + joint + subject.caption)]


def appended_nouns(subject: Subject, lexis: Lexicon, rng: random.Random) -> list[Pair]:
    """The nouns that the policy says most often, of those it never said about this image."""
    nouns = lexis.absent_nouns(subject.said, STUFFED)
    stuffing = "".join(f" and {lexis.article(noun)} {noun}" for noun in nouns)
    return [(subject.caption, subject.caption.rstrip(".!?") + stuffing)]


def noun_swapped(subject: Subject, lexis: Lexicon, rng: random.Random) -> list[Pair]:
    """One noun replaced by another one that is not said about this image."""
    return _swapped(subject, lexis, rng, noun=True)


def attribute_swapped(subject: Subject, lexis: Lexicon, rng: random.Random) -> list[Pair]:
    """One attribute (colour, size, …) replaced by another one."""
    return _swapped(subject, lexis, rng, noun=False)


def _swapped(subject: Subject, lexis: Lexicon, rng: random.Random, noun: bool) -> list[Pair]:
    places = list(dict.fromkeys(lexis.swaps(subject.caption, noun)))
    pairs = []
    for at in rng.sample(places, min(SWAPS, len(places))):
        word = core(words_of(subject.caption)[at])
        # best a word that nobody said of this image; at last one that the caption itself has
        tries = (lexis.alternatives(word, s) for s in (subject.said, [subject.caption], []))
        others = next(filter(None, tries), [])
        if others:
            pairs.append((subject.caption, lexis.replace(subject.caption, at, rng.choice(others))))
    return pairs


def neighbour_caption(subject: Subject, lexis: Lexicon, rng: random.Random) -> list[Pair]:
    """What the policy said about an image that looks alike."""
    return [(subject.caption, subject.neighbour)] if subject.neighbour else []


def generic_caption(subject: Subject, lexis: Lexicon, rng: random.Random) -> list[Pair]:
    """A caption that is true of every image."""
    return [(subject.caption, rng.choice(GENERIC))]


def comma_list(subject: Subject, lexis: Lexicon, rng: random.Random) -> list[Pair]:
    """Its content words alone, one after the other."""
    words = [core(w) for w in words_of(subject.caption)]
    kept = list(dict.fromkeys(w for w in words if w and w not in CLOSERS))
    return [(subject.caption, ", ".join(kept))] if kept else []


def style_tokens(subject: Subject, lexis: Lexicon, rng: random.Random) -> list[Pair]:
    """Words of praise that image-text models have seen beside every kind of picture."""
    return [(subject.caption, f"{subject.caption.rstrip('.!?')}, {STYLE}")]


def past_context(subject: Subject, lexis: Lexicon, rng: random.Random) -> list[Pair]:
    """An invented sentence where the scorer has stopped to read.

    Filled up to the scorer's context with what else was said about the image; a token is at least a
    word, so as many words as the context has tokens are surely enough.
    """
    rest = [c for c in dict.fromkeys(subject.said) if c != subject.caption] or [subject.caption]
    text = _sentence(subject.caption)
    for turn in range(subject.context):
        if len(words_of(text)) >= subject.context:
            break
        text += " " + _sentence(rest[turn % len(rest)])
    return [(text, text + " " + _sentence(subject.stranger))]


def _sentence(caption: str) -> str:
    return caption if caption[-1:] in (".", "!", "?") else caption + "."


def empty(subject: Subject, lexis: Lexicon, rng: random.Random) -> list[Pair]:
    """Nothing at all."""
    return [(subject.caption, "")]


ATTACKS = (
    Attack("shuffled words", "the same words in another order", "fluency", shuffled_words),
    Attack("repeated caption", "the caption twice", "repetition", repeated_caption),
    Attack("appended nouns", "nouns that are not there", "region_grounding", appended_nouns),
    Attack("noun swapped", "one object made another", "region_grounding", noun_swapped, True),
    Attack("attribute swapped", "one changed", "region_grounding", attribute_swapped, True),
    Attack("neighbour's caption", "of a look-alike", "self_retrieval", neighbour_caption, True),
    Attack("generic caption", '"a photo"', "self_retrieval", generic_caption),
    Attack("comma list", "content words alone", "fluency", comma_list),
    Attack("style tokens", f'", {STYLE}"', "fluency", style_tokens),
    Attack("past the context", "invented, where the scorer reads no more", "length", past_context),
    Attack("empty", "nothing at all", "length", empty),
)


def pairs_of(attack: Attack, subject: Subject, lexis: Lexicon, seed: str) -> tuple[list[Pair], int]:
    """The attack's pairs on a subject, and how many it would not change and so left out."""
    made = list(dict.fromkeys(attack.make(subject, lexis, random.Random(f"{attack.name}{seed}"))))
    changed = [(a, b) for a, b in made if a != b]
    return changed, max(1, len(made)) - len(changed)
