"""Caption attacks: each makes a caption worse in one way; a reward must rank the original higher.

Pure text: no image, no model, no label. An attack gets captions of the reference policy of the
image and of others (`Subject`), and the words of all its captions (`Lexicon`). The list is the
"reward unit tests" of the literature on hacked caption rewards: repetition and noun stuffing
(Cho et al. 2022, arXiv 2205.13115; Ahmadi & Agrawal 2023, arXiv 2305.14998), swapped words
(ARO, arXiv 2210.01936), generic captions, and text past the context of a CLIP (arXiv 2403.15378).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from rewards.lib.lexicon import CLOSERS, Lexicon, core, words_of

Pair = tuple[str, str]  # original, attacked
GENERIC = ("a photo", "an image", "a picture of something")
STYLE = "high quality stock photo"
MAX_NOUNS = 5  # nouns appended
MAX_SWAPS = 3  # words of each kind swapped in one caption, one at a time


@dataclass(frozen=True)
class Subject:
    """A caption to attack, and other captions of the reference policy.

    caption: the original; captions: all of its image; neighbour: one of a similar image, None where
    there is none; unrelated: one of an image that is not similar; context: tokens that the scorer
    reads.
    """

    caption: str
    captions: tuple[str, ...]
    neighbour: str | None
    unrelated: str
    context: int


AttackFunction = Callable[[Subject, Lexicon, random.Random], list[Pair]]


@dataclass(frozen=True)
class Attack:
    """A perturbation: its name, what it does, the reward that guards against it.

    contested: whether the outcome may be right after all (another noun may be true of the image),
    so that only pairs count in which judges other than the reward prefer the original.
    """

    name: str
    about: str
    guard: str
    make: AttackFunction
    contested: bool = False


def shuffled_words(subject: Subject, lexicon: Lexicon, rng: random.Random) -> list[Pair]:
    """The same words in another order."""
    words = words_of(subject.caption)
    shuffled = list(words)
    for _ in range(10):
        rng.shuffle(shuffled)
        if shuffled != words:
            break
    return [(subject.caption, " ".join(shuffled))]


def repeated_caption(subject: Subject, lexicon: Lexicon, rng: random.Random) -> list[Pair]:
    """The caption twice."""
    joint = " " if subject.caption[-1:] in (".", "!", "?") else " and "
    return [(subject.caption, subject.caption + joint + subject.caption)]


def appended_nouns(subject: Subject, lexicon: Lexicon, rng: random.Random) -> list[Pair]:
    """The policy's most frequent nouns, of those that are in no caption of this image."""
    nouns = lexicon.absent_nouns(subject.captions, MAX_NOUNS)
    stuffing = "".join(f" and {lexicon.article(noun)} {noun}" for noun in nouns)
    return [(subject.caption, subject.caption.rstrip(".!?") + stuffing)]


def noun_swapped(subject: Subject, lexicon: Lexicon, rng: random.Random) -> list[Pair]:
    """One noun replaced by another one that is in no caption of this image."""
    return _swapped(subject, lexicon, rng, noun=True)


def attribute_swapped(subject: Subject, lexicon: Lexicon, rng: random.Random) -> list[Pair]:
    """One attribute (colour, size, …) replaced by another one."""
    return _swapped(subject, lexicon, rng, noun=False)


def _swapped(subject: Subject, lexicon: Lexicon, rng: random.Random, noun: bool) -> list[Pair]:
    places = list(dict.fromkeys(lexicon.swap_indices(subject.caption, noun)))
    pairs = []
    for index in rng.sample(places, min(MAX_SWAPS, len(places))):
        word = core(words_of(subject.caption)[index])
        # best a word in no caption of this image; else one that is not in this caption; else any
        tries = (lexicon.alternatives(word, s) for s in (subject.captions, [subject.caption], []))
        words = next(filter(None, tries), [])
        if words:
            attacked = lexicon.replace(subject.caption, index, rng.choice(words))
            pairs.append((subject.caption, attacked))
    return pairs


def neighbour_caption(subject: Subject, lexicon: Lexicon, rng: random.Random) -> list[Pair]:
    """A caption of a similar image."""
    return [(subject.caption, subject.neighbour)] if subject.neighbour else []


def generic_caption(subject: Subject, lexicon: Lexicon, rng: random.Random) -> list[Pair]:
    """A caption that is true of every image."""
    return [(subject.caption, rng.choice(GENERIC))]


def comma_list(subject: Subject, lexicon: Lexicon, rng: random.Random) -> list[Pair]:
    """Its content words alone, one after the other."""
    words = [core(w) for w in words_of(subject.caption)]
    kept = list(dict.fromkeys(w for w in words if w and w not in CLOSERS))
    return [(subject.caption, ", ".join(kept))] if kept else []


def style_tokens(subject: Subject, lexicon: Lexicon, rng: random.Random) -> list[Pair]:
    """Words of praise that stand beside every kind of picture in image-text training data."""
    return [(subject.caption, f"{subject.caption.rstrip('.!?')}, {STYLE}")]


def past_context(subject: Subject, lexicon: Lexicon, rng: random.Random) -> list[Pair]:
    """An invented sentence past the scorer's context.

    Filled up to the context with other captions of the image; a word is at least one token, so as
    many words as the context has tokens are enough.
    """
    rest = [c for c in dict.fromkeys(subject.captions) if c != subject.caption] or [subject.caption]
    text = _sentence(subject.caption)
    for turn in range(subject.context):
        if len(words_of(text)) >= subject.context:
            break
        text += " " + _sentence(rest[turn % len(rest)])
    return [(text, text + " " + _sentence(subject.unrelated))]


def _sentence(caption: str) -> str:
    return caption if caption[-1:] in (".", "!", "?") else caption + "."


def empty(subject: Subject, lexicon: Lexicon, rng: random.Random) -> list[Pair]:
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


def pairs_of(
    attack: Attack, subject: Subject, lexicon: Lexicon, seed: str
) -> tuple[list[Pair], int]:
    """The attack's pairs on a subject, and how many it would not change and so left out."""
    rng = random.Random(f"{attack.name}{seed}")
    pairs = list(dict.fromkeys(attack.make(subject, lexicon, rng)))
    changed = [(a, b) for a, b in pairs if a != b]
    return changed, max(1, len(pairs)) - len(changed)
