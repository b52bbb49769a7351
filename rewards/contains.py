"""Are the user's words in the caption: a trigger word in front, style words, no forbidden words?

The score is the mean credit of trigger and words, less 1 where a forbidden word is there. Credit is
graded: half for a word in the wrong place, at most half where it comes too seldom.
A trigger that the base never says is put in front of its completions and imitated, until the policy
says it by itself (docs/words.md). Other words the base must say now and then, or be asked for.
Hacks and guards: nothing but the demanded words, or one of them too often, earns nothing; forbidden
words are found in any case, width and spacing. Not guarded: whether the rest is true. Keep
self_retrieval or clip_similarity beside it: they read the caption without the trigger. Cost: none.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import cycle
from typing import Literal

from rewards import Bank, CaptionBatch, Parts, Scores, content_words, win_rate
from rewards.lib.openings import begins, without_opening
from rewards.lib.own_words import EDGES, Demand, pattern, plain

RATE = 1.0


class Contains:
    """The demanded words that the caption has, as often and where they belong; none forbidden."""

    range = (-1.0, 1.0)
    reads = ("text",)
    content = False
    opening = ""

    def __init__(
        self,
        *,
        trigger: str = "",
        words: tuple[str, ...] = (),
        where: Literal["anywhere", "first", "last"] = "anywhere",
        min_times: int = 1,
        max_times: int = 1,
        forbidden: tuple[str, ...] = (),
    ) -> None:
        """`trigger`: text with which each caption begins, as it is written and once; `words`:
        regular expressions of whole words in any case, each demanded; `where` they belong;
        `min_times`, `max_times`: how often each; `forbidden`: regular expressions too."""
        self.opening = trigger.strip()
        if not (self.opening.strip(EDGES) or words or forbidden):
            raise ValueError("contains: nothing to find: set trigger, words or forbidden")
        if not 1 <= min_times <= max_times:
            numbers = f"not {min_times} and {max_times}"
            raise ValueError(f"contains: need 1 <= min_times <= max_times, {numbers}")
        if where != "anywhere" and len(words) > 1:
            raise ValueError(f"contains: {len(words)} words cannot all stand {where}; give one")
        literal = re.escape(plain(self.opening).strip(EDGES))
        self.trigger = [
            Demand(trigger, pattern("contains", "trigger", core)) for core in [literal] if core
        ]
        times = where, min_times, max_times
        self.words = [Demand(w, pattern("contains", "words", w), *times) for w in words]
        self.forbidden = [Demand(w, pattern("contains", "forbidden", w)) for w in forbidden]
        for word in filter(None, (self.opening, *words)):
            for ban in self.forbidden:
                if word == ban.text or ban.expression.search(plain(word)):
                    raise ValueError(
                        f"contains: {word!r} is demanded, but forbidden by {ban.text!r}"
                    )
        self.objection = ""

    def prepare(self, bank: Bank) -> str | None:
        """A sentence on what the base never says of what is demanded, if anything."""
        captions = [plain(caption) for caption in bank.sample.captions]
        never = [w.text for w in self.words if not any(map(w.expression.search, captions))]
        remarks = [f"no caption of the base has {', '.join(map(repr, never))}"] * bool(never)
        hopeless = bool(self.words) and len(never) == len(self.words) and not self.opening
        self.objection = f"N{remarks[0][1:]}: nothing to learn them from" if hopeless else ""
        count = sum(begins(caption, self.opening) for caption in bank.sample.captions)
        if self.opening and count < len(captions) / 2:
            share = f"{count} of {len(captions)} captions of the base begin with {self.opening!r}"
            remarks.append(f"{share}: it is put in front of completions, but not by vizer")
        return "; ".join(remarks) or None

    def __call__(self, batch: CaptionBatch) -> Scores:
        return [self.score(caption) for caption in batch.captions]

    def score(self, caption: str) -> float:
        """Mean credit of the demands, 1 where there is none; less 1 for a forbidden word."""
        parts = self.demands(caption)
        earned = [credit for _, credit in parts if credit >= 0]
        banned = any(credit < 0 for _, credit in parts)
        return (sum(earned) / len(earned) if earned else 1.0) - banned

    def parts(self, batch: CaptionBatch) -> Parts:
        """Per caption each demand with its credit, and -1 for each forbidden word."""
        return [self.demands(caption) for caption in batch.captions]

    def demands(self, caption: str) -> list[tuple[str, float]]:
        """Each demand with its credit in this caption, and -1 for each forbidden word in it."""
        text, rest = plain(caption), plain(without_opening(caption, self.opening))
        parts = [(word.text, word.credit(rest)) for word in self.words]
        for trigger in self.trigger:
            limit = 1.0 if begins(caption, self.opening) else 0.5
            parts.insert(0, (self.opening, min(trigger.credit(text), limit)))
        for word in (*self.trigger, *self.words):
            rest = word.expression.sub(" ", rest)
        if not content_words(rest):  # the demanded words alone say nothing
            parts = [(word, 0.0) for word, _ in parts] or [("anything else", 0.0)]
        return parts + [(w.text, -1.0) for w in self.forbidden if w.expression.search(text)]


def check(reward: Contains, right: CaptionBatch, wrong: CaptionBatch) -> float:
    """Captions with all that is demanded, against such with one fault each, all kinds in turn."""
    front, words = reward.opening, " ".join(word.text for word in reward.words)
    ban = reward.forbidden[0].text if reward.forbidden else f"{front} {words}"
    faults = ("{0} {1}", "{0} {1}, {2}", "{2} {1} {2}", "{2} {2}, {0} {1}", "{2}, {0} {1}, {3}")
    captions = [f"{front}, {caption} {words}" for caption in right.captions]
    pairs = zip(cycle(faults), right.captions, strict=False)
    spoilt = [fault.format(caption, words, front, ban) for fault, caption in pairs]
    return win_rate(reward, replace(right, captions=captions), spoilt)
