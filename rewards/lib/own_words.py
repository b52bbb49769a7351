"""The user's own words: regular expressions over plain text, and lists of words from a file."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rewards.lib.text import lemma

EDGES = " \t\n.,:;!-\N{EN DASH}\N{EM DASH}"  # what is no word around a caption or an opening


def plain(text: str) -> str:
    """Text as words are searched in it: one width of letters, one space, nothing invisible."""
    visible = [c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf"]
    return " ".join("".join(visible).split())


def pattern(reward: str, key: str, expression: str) -> re.Pattern[str]:
    """A regular expression for whole words in any case; ValueError where it is none, or empty."""
    try:
        re.compile(plain(expression))  # by itself, so that an error's position is the user's
        compiled = re.compile(rf"(?<!\w)(?:{plain(expression)})(?!\w)", re.IGNORECASE)
    except re.error as error:
        text = f"{reward}: {key} has {expression!r}, which is no regular expression: {error}"
        raise ValueError(text) from error
    if compiled.fullmatch(""):
        raise ValueError(f"{reward}: {key} has {expression!r}, which fits any caption")
    return compiled


@dataclass(frozen=True)
class Demand:
    """A word that a text must have from `min_times` to `max_times` times, in its place.

    text: the word as the user wrote it; where: "anywhere", "first" or "last".
    """

    text: str
    expression: re.Pattern[str]
    where: str = "anywhere"
    min_times: int = 1
    max_times: int = 1

    def credit(self, text: str) -> float:
        """In [0, 1]: half in the wrong place, a share where it comes too seldom, 0 too often."""
        text = text.strip(EDGES)
        spans = [match.span() for match in self.expression.finditer(text)]
        if len(spans) < self.min_times:
            return len(spans) / self.min_times / 2
        if len(spans) > self.max_times:
            return 0.0
        first, last = spans[0][0] == 0, spans[-1][1] == len(text)
        return 1.0 if {"anywhere": True, "first": first, "last": last}[self.where] else 0.5


def read_words(reward: str, words: Sequence[str] | str) -> list[str]:
    """The entries of a list or, from a text file, one a line without `#` comments, each once.

    ValueError where the file cannot be read as UTF-8, or nothing is in it.
    """
    where = "its list"
    if isinstance(words, str):
        path = Path(words).expanduser()
        where = str(path)
        try:
            words = path.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError as error:
            raise ValueError(f"{reward}: the word list {path} does not exist") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{reward}: the word list {path} is not UTF-8 text") from error
        except OSError as error:
            raise ValueError(
                f"{reward}: cannot read the word list {path}: {error.strerror}"
            ) from error
        words = [line.partition("#")[0] for line in words]
    entries = [*dict.fromkeys(entry for word in words if (entry := plain(word).lower()))]
    if not entries:
        raise ValueError(f"{reward}: there is no word in {where}; give it one at least")
    return entries


def lemmas_of(text: str) -> list[str]:
    """The words of a text in order, in lower case and the singular, without punctuation."""
    return [lemma(word) for word in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", plain(text).lower())]


class Phrases:
    """A set of words and phrases that are looked up in texts, in any case and number."""

    def __init__(self, reward: str, entries: Iterable[str]) -> None:
        """ValueError where an entry has no letter or digit."""
        self.entries: set[tuple[str, ...]] = set()
        for entry in entries:
            words = tuple(lemmas_of(entry))
            if not words:
                raise ValueError(f"{reward}: {entry!r} is no word")
            self.entries.add(words)
        self.lengths = sorted({len(entry) for entry in self.entries}, reverse=True)

    def spans(self, words: Sequence[str]) -> Iterator[slice]:
        """Where entries stand among these words, from `lemmas_of`: from the left, the longest."""
        index = 0
        while index < len(words):
            rest = [n for n in self.lengths if n <= len(words) - index]
            fits = (n for n in rest if tuple(words[index : index + n]) in self.entries)
            if length := next(fits, 0):
                yield slice(index, index + length)
            index += length or 1

    def covered(self, words: Sequence[str]) -> list[bool]:
        """Whether each of these words belongs to an entry."""
        inside = [False] * len(words)
        for span in self.spans(words):
            inside[span] = [True] * (span.stop - span.start)
        return inside
