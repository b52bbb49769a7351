"""PTB tokenisation of captions as coco-caption's, which runs CoreNLP 3.4.1 in Java; here without.

Penn Treebank words ("dog's" is "dog", "'s"; "can't" is "ca", "n't"), lower case, and without the
punctuation that coco-caption drops. Rules rewritten from what CoreNLP 3.4.1 does with captions.
"""

from __future__ import annotations

import html
import re
from functools import lru_cache

DROPPED = {"''", "'", "``", "`", '"', ".", "..", "?", "!", ",", ":", "-", "--", "...", ";"}
# coco-caption means to drop brackets too, but its list has them in upper case and the tokens are
# in lower case: they stay, and so they do in every published number.
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
REPLACED = str.maketrans(
    {
        **dict.fromkeys("‘’‛´", "'"),
        **dict.fromkeys("“”„«»", '"'),
        **dict.fromkeys("–—", " -- "),
        **{"…": " ... ", "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "£": " # ", "¢": " cents "},
    }
)
LONG = re.compile(r"\.{3,}|-{3,4}")  # ellipses and dashes
BRACKET = re.compile(r"[()[\]{}]")
# Abbreviations that keep their period wherever they stand.
ABBREVIATIONS = """
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri ala ariz calif
    colo conn ct dak fla ga ind kan kans ky md mich minn mo mont neb nev okla penn tenn va vt wis
    wisc wyo inc co cos corp pty pte ltd plc rt bancorp bhd assn univ intl sys jr sr bros esq etc
    blvd rd est tel al seq ext sq ph.d ed.d mr mrs ms dr drs prof profs sen sens rep reps atty
    attys lt col gen messrs gov govs adm rev maj sgt cpl pvt capt st ste ave pres lieut hon brig
    comdr cmdr pfc spc supt supts det vs ft mt dept cf alex wm jos cie treas ph natl
"""
KEEP_PERIOD = frozenset(ABBREVIATIONS.split())
CAPITAL_ABBREVIATIONS = re.compile(r"(?=[A-Z])(?i:az|ark|del|ill|la|mass|miss|ore|pa|tex|wash)")
BEFORE_NUMBERS = re.compile(r"(?i:nos?|figs?|prop|ca|art|pp)")  # "no. 5", but "there is no."
# A letter keeps its period ("George W. Bush"), but not before the start of a sentence.
STARTS = re.compile(r"An?|And|At|But|For|He|I[fnt]|On|S[oh]e?|Th(?:at|e|ere|is|ey)|We|With|You")
TOKEN = re.compile(
    r"""
      (?:https?|ftp)://[^\s<>|`()]*[^\s<>|`().,;:&"'!?-]                     # addresses
    | (?:www\.(?:[^\s`<>|.!?,()]+\.)+[a-z]{2,4}|(?:[^\s`<>|.!?,:/$()"']+\.)+(?:com|net|org|edu)\b)
      (?:/[^\s`<>|]+[^\s`<>|.!?,;:&()-])?
    | [a-z0-9][^\s"<>|()]*@(?:[^\s"<>|().]+\.)+[a-z]+
    | </?[a-z!][^<>]*>
    | [#@][a-z_]\w*
    | [<>]?[:;=][-o*']?[()dpo\\@|[\]](?![a-z0-9])                            # :-)
    | (?<![a-z])(?:can(?=not\b)|gon(?=na\b)|got(?=ta\b)|lem(?=me\b)|gim(?=me\b)|wan(?=na\b))
    | (?<![a-z])(?:more(?='n\b)|'t(?=(?:is|was)\b))
    | [a-z]*[a-mo-z](?=n't\b) | n't\b
    | (?<![a-z0-9])(?:o'clock\b|'n'|'(?:em|till?|cause|twixt)\b|'[1-9]0s\b)
    | '(?:s|m|d|re|ve|ll)\b
    | (?-i:[A-Z]+(?:[&+][A-Z]+)+)                                            # AT&T
    | (?:[a-z]\.){2,}                                                        # U.S.
    | [a-z0-9]+(?:-[a-z]+){0,2}(?:/[a-z0-9]+(?:-[a-z]+){0,2}){1,2}           # red/blue, 1/2
    | [a-z0-9][a-z0-9.,]*(?:[-_][a-z0-9]+(?:\.[0-9]+)?)+                     # black-and-white
    | [-+]?[0-9]*(?:[.:,][0-9]++)+ | [-+]?[0-9]++(?:[.:,][0-9]++)*(?![a-z])
    | (?<![a-z0-9])(?:[a-hj-xz]'[a-z]{2,}|[a-z]+[aeiouy]'[aeiou][a-z]*|y')   # ma'am
    | (?<![a-z0-9])'[0-9]{2}(?![0-9])                                        # '99
    | [dol]'[a-z0-9]+ | (?<![a-z0-9])[dlj]'(?=$|\W)
    | [^\W\d_][^\W_]*(?:[.!?][^\W\d_][^\W_]*)*                               # "dogs.three" is one
    | [^\W_]+
    | \.\.\.+ | -{5,} | -{2,4} | [!?]+ | '' | ``
    | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)


def tokenize(text: str) -> list[str]:
    """Tokens of a caption in lower case, without punctuation."""
    chunks = html.unescape(text).translate(REPLACED).split()
    pairs = zip(chunks, [*chunks[1:], ""], strict=False)
    return [token for chunk, after in pairs for token in _tokens(chunk, _kind(after))]


def _kind(chunk: str) -> str:
    """What a chunk means for a period before it: "number", "start" of a sentence or ""."""
    if chunk[:1].isdigit():
        return "number"
    return "start" if not chunk or STARTS.fullmatch(chunk) else ""


@lru_cache(maxsize=200_000)
def _tokens(chunk: str, after: str) -> tuple[str, ...]:
    """Tokens of what stands between two spaces; after: the kind of the next chunk."""
    tokens: list[str] = []
    position = 0
    while match := TOKEN.match(chunk, position):
        token, position = match[0], match.end()
        if chunk.startswith(".", position) and _keeps_period(token, chunk[position:], after):
            token, position = token + ".", position + 1
        token = BRACKET.sub(lambda bracket: BRACKETS[bracket[0]], token.lower())
        if token not in DROPPED and not LONG.fullmatch(token):
            tokens.append(token)
    return tuple(tokens)


def _keeps_period(word: str, rest: str, after: str) -> bool:
    """Whether the period behind a word belongs to it, as in "St."; rest: from there on."""
    if word.lower() in KEEP_PERIOD or CAPITAL_ABBREVIATIONS.fullmatch(word):
        return True
    if rest[1:2] in (",", ";", ":"):
        return word[-1:].isalnum()
    if len(word) == 1 and word.isalpha():
        return rest == "." and after != "start"
    return rest == "." and after == "number" and bool(BEFORE_NUMBERS.fullmatch(word))
