"""Splits a caption into sentences, content words and noun phrases, with word lists alone.

The built-in chunker knows closed classes (determiners, prepositions, pronouns, …), the verbs and
adjectives that captions use, and endings; whatever else stands in a row is a noun phrase. It does
well on captions and is no tagger: `tagger="spacy"` (extra `grounding`) is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any


class Missing(ValueError):
    """Something optional that is not installed: says what to install."""

    def __init__(self, name: str, *, extra: str, then: str | None = None) -> None:
        """`name`: what is missing; `extra`: our extra that has it; `then`: one more command."""
        also = f", then `{then}`" if then else ""
        super().__init__(
            f"{name} is not installed: run `pip install 'vizer_rl[{extra}]'`{also} "
            "(or take the built-in choice)"
        )


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


DETERMINERS = _set(
    """a an the this these that those some any each every both all another other others no several
    many few more most much one two three four five six seven eight nine ten single multiple various
    different certain its his her their our my your half dozen such numerous"""
)
FUNCTION_WORDS = DETERMINERS | _set(
    """i you he she it we they them him us me itself himself herself themselves who whom whose which
    what there here where when while how why something someone somebody anything nothing everything
    of in on at by for with without from to into onto over under above below beneath beside besides
    between behind near inside outside within around across along against among through toward
    towards upon off out up down about after before during as like than per via amid past left right
    next underneath opposite
    and or but nor so yet if because although though whether either neither not
    is are was were be been being am has have had having do does did can could will would may might
    must shall should appears seems
    very quite too also just only still even really rather slightly partially fully mostly together
    away apart alone again almost nearly then now back forward upward downward ahead aside fast
    well perhaps maybe however etc ie eg s t d ll re ve"""
)
STOP = FUNCTION_WORDS | _set("photo photograph picture image photos pictures images")
_BASE_VERBS = _set(
    """sit stand lie lay hang ride walk run jump fly swim wear hold carry eat drink look watch
    play show feature contain include depict display cover surround fill use make take get put go
    come lean rest wait talk speak smile pose read write cook cut throw catch hit kick swing ski
    surf skate drive park pull push open close face approach cross enter leave sleep perch graze
    stretch reach point touch feed pet chase follow lead work try prepare serve enjoy attach place
    set stack arrange line gather dress decorate suggest indicate create add give see appear seem
    say tell wave blow grow bloom float sail travel move turn stop stay climb fall spread
    overlook"""
)
_VERBS = _BASE_VERBS | _set(
    """sits stood lies lying laid hung rode ran flew swam wore worn held ate eaten drank made making
    took taken went gone came coming wrote written threw thrown caught drove driven led gave given
    saw seen said told blew blown grew grown fell fallen slept left sat taking using riding making
    driving facing having giving leaving placing serving preparing posing smiling gazing dining
    biting sliding racing"""
)
_PLURAL_TOO = _set(
    "displays faces parks rests works lines sets places plays covers waves points uses"
)
ADJECTIVES = _set(
    """red orange yellow green blue purple pink black white brown grey gray golden silver beige tan
    teal turquoise maroon violet cyan magenta navy crimson scarlet dark bright light pale colourful
    colorful colored coloured
    small large big little tiny huge giant tall short long wide narrow thick thin old young new
    solid striped plain dotted checkered spotted round square rectangular circular triangular flat
    empty full open closed wet dry clean dirty beautiful pretty cute nice good great modern vintage
    antique wooden metallic metal plastic fresh ripe hot cold warm cool sunny cloudy snowy rainy
    grassy sandy rocky leafy busy crowded quiet high low deep shallow soft hard smooth rough shiny
    fluffy furry happy sad male female adult blurry visible available main front rear upper lower
    first second third last same own favourite favorite"""
)
_NOUNS_TOO = _set("orange light square metal plastic silver cold front open tan adult male female")
_ING_NOUNS = _set(
    """building ceiling wing ring king string thing clothing painting railing evening morning
    wedding swing spring awning lightning dressing frosting icing topping parking crossing earring
    clearing pudding drawing sling sibling lettering siding seating"""
)
_ED_NOUNS = _set("bed shed seed weed reed sled speed breed moped")
_SUBJECTS = _set("and or but who that which it he she they ,")  # a verb may follow
_LY_NOUNS = _set("family butterfly lily fly jelly belly bully assembly friendly")
_MEASURES = _set("group pair couple bunch set piece pieces row rows lot lots number variety slice")
_SCAFFOLD = _set(
    """photo photograph picture image photos pictures images view shot close-up closeup scene
    untitled wallpaper"""
)
_PLACES = _set(
    """top bottom side sides middle center centre edge edges corner background foreground front
    rear distance left right way part area end"""
)
_IRREGULAR = {
    **dict(people="person", men="man", women="woman", children="child", feet="foot", teeth="tooth"),
    **dict(mice="mouse", geese="goose", oxen="ox", loaves="loaf", leaves="leaf", knives="knife"),
    **dict(shelves="shelf", wolves="wolf", wives="wife", halves="half", scarves="scarf"),
    **dict(calves="calf", shoes="shoe", toes="toe", canoes="canoe", movies="movie"),
    **dict(cookies="cookie", buses="bus", policemen="policeman", firemen="fireman"),
    **dict(brownies="brownie", hooves="hoof", lives="life", skis="ski", ties="tie", pies="pie"),
}
_NOT_PLURAL = _set(
    """glasses sunglasses pants jeans shorts scissors clothes tennis series species lens canvas
    gas yes headphones binoculars pajamas pyjamas trousers goggles lotus cactus"""
)
_SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))\s+|\n+")
_ABBREVIATION = re.compile(
    r"(?:^|\s)(?:mr|mrs|ms|dr|st|vs|no|approx|e\.g|i\.e|[ap]\.m|(?-i:[A-Z]))\.$", re.IGNORECASE
)
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*|[^\s\w]")


def sentences(text: str) -> list[str]:
    """The sentences of a text, as they stand; a caption without a full stop is one."""
    found: list[str] = []
    for part in _SENTENCE_END.split(text.strip()):
        if found and _ABBREVIATION.search(found[-1]):
            found[-1] += f" {part}"
        elif part.strip():
            found.append(part.strip())
    return found


def _words(text: str) -> list[str]:
    """Lower-case words and punctuation marks; a possessive loses its ending."""
    plain = text.lower().replace("’", "'")
    return _WORD.findall(re.sub(r"'s\b|(?<=s)'(?!\w)", "", plain))


def content_words(text: str) -> list[str]:
    """The words that say what is there, in lower case, as often as they are said."""
    return [w for w in _words(text) if w[0].isalnum() and w not in STOP]


def content_tokens(pieces: list[str]) -> list[int]:
    """Which of the tokens belong to content words, given the text of each."""
    words = re.finditer(r"[^\W_]+", "".join(pieces))
    spans = [m.span() for m in words if content_words(m.group())]
    found, end = [], 0
    for token, piece in enumerate(pieces):
        start, end = end, end + len(piece)
        if any(start < b and a < end for a, b in spans):
            found.append(token)
    return found


def lemma(noun: str) -> str:
    """The singular of a noun."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if len(noun) < 4 or noun in _NOT_PLURAL or noun.endswith(("ss", "us", "is")):
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


def _chunks(words: list[str]) -> Iterator[list[str]]:
    """Runs of words that may be a noun phrase; "big, red ball" and "black and white cat" are one.

    A lone "an orange" is kept by its determiner; other adjectives without a noun are dropped.
    """
    waiting: list[str] = []  # adjectives whose noun is yet to come
    run: list[str] = []
    article = False  # before the run
    for at, word in enumerate([*words, "."]):
        before, after = "".join(words[max(0, at - 1) : at]), "".join(words[at + 1 : at + 2])
        if not _ends(word, run, before, after):
            run.append(word)
            continue
        joins = word in (",", "and")
        if run:
            bare = all(w in ADJECTIVES for w in run) and not (article and run[-1] in _NOUNS_TOO)
            if bare and joins:
                waiting += run
            elif not (run[-1] in _MEASURES and word == "of") and not bare:
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
    if word.endswith("ly") and word not in _LY_NOUNS:
        return True
    only_adjectives = all(w in ADJECTIVES for w in run)
    noun_next = after[:1].isalnum() and after not in FUNCTION_WORDS
    if word in _ING_NOUNS or word in _ED_NOUNS:
        return False
    if word in ADJECTIVES:
        late = bool(run) and run[-1] not in ADJECTIVES and not noun_next
        return late and (word not in _NOUNS_TOO or word == "orange")
    if (word.endswith(("ing", "ed")) and len(word) > 4) or word in _VERBS - _BASE_VERBS:
        return not (only_adjectives and noun_next)  # "a parked car", not "a car parked"
    if word in _BASE_VERBS:
        return bool(run) and (run[-1] != lemma(run[-1]) or (not only_adjectives and noun_next))
    if _is_verb_form(word) and word not in _PLURAL_TOO:
        return not only_adjectives or (not run and before in _SUBJECTS and not noun_next)
    return False


def _is_verb_form(word: str) -> bool:
    s, es = word.removesuffix("s"), word.removesuffix("es")
    y = f"{word[:-3]}y" if word.endswith("ies") else ""
    return word != s and bool(_BASE_VERBS & {s, es, y})


def _phrase(words: list[str]) -> str:
    """The words as a phrase; "" where they name no thing that can be seen."""
    while words and words[-1] in ADJECTIVES and words[-1] not in _NOUNS_TOO:
        words = words[:-1]
    if not words or words[-1] in _SCAFFOLD or (len(words) == 1 and words[0] in _PLACES):
        return ""
    return " ".join([*words[:-1], lemma(words[-1])])


@lru_cache
def _spacy() -> Any:
    how = "python -m spacy download en_core_web_sm"
    try:
        import spacy
    except ModuleNotFoundError as error:
        raise Missing("spacy", extra="grounding", then=how) from error
    try:
        return spacy.load("en_core_web_sm", exclude=["ner"])
    except OSError as error:
        raise Missing("spaCy's model en_core_web_sm", extra="grounding", then=how) from error


def _stripped(chunk: Any) -> str:
    """A spaCy noun chunk without determiner, number and possessive, its head in the singular."""
    kept = [t for t in chunk if t.pos_ in ("ADJ", "NOUN", "PROPN", "VERB") and t.dep_ != "poss"]
    if not kept or kept[-1].lemma_.lower() in _SCAFFOLD:
        return ""
    return " ".join([*(t.lower_ for t in kept[:-1]), kept[-1].lemma_.lower()])


def lemmas(caption: str) -> dict[str, None]:
    """The content words of a caption, each once, in order, in the singular."""
    return dict.fromkeys(map(lemma, content_words(caption)))
