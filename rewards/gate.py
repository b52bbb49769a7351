"""Hard conditions on a caption: 0 where all hold, -1 where one fails.

A caption that fails is judged by no content reward and ranks below all others of its image, by
`weight` times the standard deviation of their advantages, so that nothing it says can pay for how
it says it: empty, not come to its end, saying itself again, repeating the prompt, or with remains
of markup and of the web (special tokens, links, hash tags, the placeholder names of cleaned alt
text such as <PERSON>).
Repetition is a phrase said twice running ("a cat a cat"; a single word: three times), or a share of
`phrase`-grams that were said before. True captions repeat small phrases ("a small red circle and a
small red square"): at the defaults every true caption of 2000 scenes passes. Cost: none.
"""

from __future__ import annotations

import re
from dataclasses import replace

from rewards import CaptionBatch, Parts, Scores, win_rate

RATE = 1.0
MARKS = {
    "special token": re.compile(r"<\|[^|]*\|>|</?[a-z_][\w-]*>"),
    "placeholder": re.compile(r"<[A-Z][A-Z_ ]*>|\[[A-Z][A-Z_ ]+\]"),
    "link": re.compile(r"https?:|www\.|\w\.(?:com|org|net|co|io|jpe?g|png|html?)\b", re.IGNORECASE),
    "hash tag": re.compile(r"(?:^|\s)#\w"),
}


class Gate:
    """-1 for a caption that is empty, endless, repetitive, an echo or full of markup."""

    range = (-1.0, 0.0)
    reads = ("text",)
    content = False
    gates = True

    def __init__(self, *, phrase: int = 4, repeated: float = 0.2) -> None:
        """`phrase`: length in words of the phrases that count as repeated; `repeated`: share of
        them, from 0 to 1, above which the caption fails."""
        if phrase < 1 or not 0 <= repeated <= 1:
            allowed = "phrase >= 1 and repeated in [0, 1]"
            raise ValueError(f"gate: need {allowed}, not {phrase} and {repeated}")
        self.phrase, self.repeated = phrase, repeated

    def __call__(self, batch: CaptionBatch) -> Scores:
        return [-1.0 if failed else 0.0 for failed in self.parts(batch)]

    def parts(self, batch: CaptionBatch) -> Parts:
        """Per caption the conditions that it fails, each with -1."""
        ended = batch.ended or [True] * len(batch.captions)
        parts: Parts = []
        for caption, end in zip(batch.captions, ended, strict=True):
            failed = [] if end else ["no end"]
            failed += self.failed(caption, batch.prompt)
            parts.append([(name, -1.0) for name in failed])
        return parts

    def failed(self, caption: str, prompt: str = "") -> list[str]:
        """The conditions that the text alone fails."""
        words, echo = _words(caption), _words(prompt)
        failed = [name for name, mark in MARKS.items() if mark.search(caption)]
        if not words:
            failed.append("empty")
        if echo and echo in [words[i : i + len(echo)] for i in range(len(words))]:
            failed.append("prompt echo")
        if self.repeats(words):
            failed.append("repetition")
        return failed

    def repeats(self, words: list[str]) -> bool:
        """Whether a phrase is said twice running, or too many of them again."""
        for n in range(1, len(words) // 2 + 1):
            times = 3 if n == 1 else 2
            starts = range(len(words) - times * n + 1)
            if any(words[i : i + n] * times == words[i : i + times * n] for i in starts):
                return True
        phrases = [tuple(words[i : i + self.phrase]) for i in range(len(words) - self.phrase + 1)]
        return bool(phrases) and 1 - len(set(phrases)) / len(phrases) > self.repeated


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def check(reward: Gate, right: CaptionBatch, wrong: CaptionBatch) -> float:
    """Against captions with one fault each, all kinds in turn."""
    faults = ("{0} {0}", "", "{0} <PERSON>", "{0}<|im_end|>", "see www.example.com {0}", "{0} #art")
    spoilt = [faults[k % len(faults)].format(c) for k, c in enumerate(right.captions)]
    return win_rate(reward, replace(right, ended=None), spoilt)
