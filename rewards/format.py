"""Is the caption one sentence of plain text: no list, no "a photo of", no longer than allowed?

Minus the share of four conditions that it fails: no more than `sentences`; no list (bullets,
numbers, tags between commas, more than `items` things in a row); no talk of the picture in front
("a photo of", "the image shows"); within the limits. A trigger word in front (`contains`) does not
count. Hacks and guards: nothing at all fails everything; a sentence that comes to no end is past
`max_words`; ";", "|", new lines and full stops without a space end a sentence too; a list that is
joined by "and" is a list. Not guarded: what the sentence says. Keep self_retrieval or
clip_similarity beside it. Cost: none.
"""

from __future__ import annotations

import re
from itertools import cycle

from rewards import CaptionBatch, Parts, Scores, sentences, win_rate
from rewards.lib.own_words import plain
from rewards.lib.text import FUNCTION_WORDS, VERBS

RATE = 1.0
CONDITIONS = 4
PICTURE = r"(?:photo|photograph|picture|pic|image|snapshot)s?"
ADJECTIVE = (
    r"(?:(?!(?:an?|the|of|in|with)\b|[\w-]+(?:ing|s)\b)[\w-]+ ){0,3}?"  # "black and white photo"
)
SHOWS = r"(?:of|shows?|showing|depicts?|depicting|features?|featuring|contains?|displays?|where)\b"
OPENING = re.compile(
    rf"(?:(?:this|here|it)(?: is|'s) )?(?:an? |the |this )?{ADJECTIVE}{PICTURE} {SHOWS}"
    rf"|(?:in|on) (?:the|this) {PICTURE}\b|(?:we|you|i) (?:can )?see\b",
    re.IGNORECASE,
)
BULLET = re.compile(r"^\s*(?:[-*•·]|\d+[.)])\s", re.MULTILINE)
BREAKS = re.compile(r"[;|•]|\n|(?<=[^\W\d_]{2})[.!?](?=[^\W\d_])")


class Format:
    """0 for one sentence of plain text within the limits, down to -1 by what it fails."""

    range = (-1.0, 0.0)
    reads = ("text",)
    content = False

    def __init__(
        self,
        *,
        sentences: int = 1,
        items: int = 5,
        max_words: int = 40,
        max_characters: int | None = None,
    ) -> None:
        """`sentences`: how many there may be; `items`: things joined by commas, "and" or "or";
        `max_words`, `max_characters`: of a whole caption; null: any number of characters."""
        limits = dict(sentences=sentences, items=items, max_words=max_words)
        limits |= {} if max_characters is None else {"max_characters": max_characters}
        for name, value in limits.items():
            if value < 1:
                raise ValueError(f"format: need {name} >= 1, not {value}")
        self.sentences, self.items = sentences, items
        self.max_words, self.max_characters = max_words, max_characters

    def __call__(self, batch: CaptionBatch) -> Scores:
        return [self.score(caption) for caption in batch.captions]

    def score(self, caption: str) -> float:
        """Minus the share of the conditions that a caption fails."""
        failed = self.failed(caption)
        return -1.0 if "empty" in failed else -len(failed) / CONDITIONS

    def parts(self, batch: CaptionBatch) -> Parts:
        """Per caption the conditions that it fails, each with -1."""
        return [[(name, -1.0) for name in self.failed(caption)] for caption in batch.captions]

    def failed(self, caption: str) -> list[str]:
        """The conditions that a caption fails."""
        text = plain(caption)
        if not re.search(r"[^\W_]", text):
            return ["empty"]
        too_long = len(text.split()) > self.max_words
        too_long |= len(text) > (self.max_characters or len(text))
        conditions = {
            "sentences": len(sentence_parts(caption)) > self.sentences,
            "list": is_list(caption, self.items),
            "opening": bool(OPENING.match(text)),
            "limits": too_long,
        }
        return [name for name, failed in conditions.items() if failed]


def sentence_parts(caption: str) -> list[str]:
    """What stands between the ends of sentences and what does their work, if there are words."""
    parts = [part for line in BREAKS.split(caption) for part in sentences(line)]
    return [part for part in parts if re.search(r"[^\W_]", part)]


def is_list(caption: str, items: int) -> bool:
    """Whether it has bullets, is nothing but tags, or has more things in a row than `items`."""
    text = plain(caption).lower().strip(" .!?")
    tags = [re.findall(r"[\w'’-]+", part) for part in re.split(r"[,;|/]", text)]
    bare = all(0 < len(tag) <= 3 and not {*tag} & FUNCTION_WORDS for tag in tags)
    bare &= not any(len(tag) > 1 and {*tag} & VERBS for tag in tags)
    row = re.split(r",(?: and| or)?|\band\b|\bor\b|&|\+", text)
    return bool(BULLET.search(caption)) or (len(tags) > 1 and bare) or len(row) > items


def check(reward: Format, right: CaptionBatch, wrong: CaptionBatch) -> float:
    """Against captions with one fault each, all kinds in turn."""
    faults = ("A photo of {0}", "{0}. It is there.", "- {0}", "red, {1}, large", "", "{0}; {0}")
    words = [caption.split()[-1] if caption else "" for caption in right.captions]
    rows = zip(cycle(faults), right.captions, words, strict=False)
    return win_rate(reward, right, [fault.format(caption, word) for fault, caption, word in rows])
