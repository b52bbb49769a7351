"""Word certainty: a word pays where the frozen policy is sure of it, and costs where it is not.

    c(w) = p(w | image, caption so far) / sum over the class of w of p(v | image, caption so far)
    R    = sum over the words of a class of  c − λ (1 − c),   λ = p / (1 − p),  p = `at_least`

so that a word is worth saying where it is right with probability p or more: p is the dial. Classes
(shapes, colours, numbers, relations, …) come from the base's own captions. A word that pays has to
pay by sight too, by its odds over those on a blank image (lib/reliability): what such pictures
are said to show anyway (co-occurrence) is sure, but not seen. Frozen, so that training cannot make
the judge surer. A sum, not a mean: saying next to nothing scores 0, not high.
Hacks and guards: the same fact twice counts once (lib/facts.py); "an image of" has no word of a
class; the colour of a background is on the blank image too. Not guarded: a word that stands in no
caption of the base has no class, and says what it likes; what is sure is not what is interesting.
Cost: reads the trainer's own pass of the reference policy; passes of its own over what follows
alternatives of several tokens, and over captions on blank images, each prefix of them once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch

from rewards import Bank, CaptionBatch, Parts, Scores, win_rate
from rewards.lib.certain_words import CertainWords
from rewards.lib.facts import repeated
from rewards.lib.reliability import Reliability, fit_temperature, sight, sight_objection, tempered

RATE = 0.9


class Certainty:
    """How sure the frozen policy is of the words, beyond what a blank image makes it."""

    reads = ("image", "text", "policy")
    range = (float("-inf"), float("inf"))

    def __init__(
        self,
        *,
        at_least: float = 0.8,
        prior: bool = True,
        tagger: Literal["lexicon", "builtin", "spacy"] = "lexicon",
        temperature: float | None = None,
        step: float = 0.05,
    ) -> None:
        """`at_least`: probability of being right from which a word pays, between .5 and 1; `prior`:
        what pays has to pay by sight too; `tagger`: what finds words and classes, lexicon (contexts
        in the base's captions) or, on real text, builtin or spacy (parts of speech); `temperature`:
        of the probabilities, null: 1 for a base, fitted for a policy that is instruction-tuned;
        `step`: differences below are noise."""
        if not 0.5 < at_least < 1:
            raise ValueError(f"certainty: need at_least between 0.5 and 1, not {at_least}")
        if temperature is not None and temperature <= 0:
            raise ValueError(f"certainty: need a temperature above 0, not {temperature}")
        self.at_least, self.penalty = at_least, at_least / (1 - at_least)
        self.prior, self.tagger, self.step = prior, tagger, step
        self.temperature = temperature
        self.words: CertainWords | None = None
        self.reliability = Reliability(temperature or 1.0, ())
        self.objection = ""

    def prepare(self, bank: Bank) -> str:
        """Learn classes and temperature from captions of the base; the reliability table."""
        self.words = CertainWords(bank.sample, self.tagger)
        trial = self.words.trial(bank.sample)
        fitted = fit_temperature(trial.own, trial.views) if bank.sample.policy.instruct else 1.0
        temperature = self.temperature or fitted
        self.reliability = Reliability.measure(trial.own, trial.views, temperature)
        self.objection = sight_objection(trial.own, trial.other)
        return "; ".join([self.reliability.sentence(), *self.words.remarks(bank.sample)])

    def save(self, folder: Path) -> None:
        """Write the reliability table."""
        table = {"at_least": self.at_least, **self.reliability.record()}
        (folder / "certainty.json").write_text(json.dumps(table, indent=1))

    def value(self, certainty: float) -> float:
        """What a word of this certainty is worth."""
        return certainty - self.penalty * (1 - certainty)

    def certainties(self, probabilities: list[list[torch.Tensor]]) -> list[list[float]]:
        """Of each word, from its (1 + A,) probabilities and its alternatives'."""
        t = self.reliability.temperature
        return [[float(tempered(p, t)[0]) for p in row] for row in probabilities]

    def parts(self, batch: CaptionBatch) -> Parts:
        """Per caption its words of a class, certainty and value; * marks those under the dial."""
        if self.words is None:
            raise RuntimeError("certainty was not prepared: it needs captions of the base")
        beside = self.words.beside_rivals(batch)
        certain = self.certainties(self.words.of_class(batch, beside))
        paying = [[self.prior and self.value(c) > 0 for c in row] for row in certain]
        blank = self.words.blank(batch, paying)
        again_of = {c: repeated(c, self.words.places(c)) for c in dict.fromkeys(batch.captions)}
        parts: Parts = []
        t = self.reliability.temperature
        for caption, ps, cs, priors in zip(batch.captions, beside, certain, blank, strict=True):
            places, left = self.words.places(caption), iter(priors)
            parts.append([])
            for place, again, p, c in zip(places, again_of[caption], ps, cs, strict=True):
                value, note = self.value(c), ""
                if self.prior and value > 0:
                    s = sight(*(tempered(x, t) for x in (p, next(left))))
                    value, note = min(value, self.value(s)), f" (by sight {s:.2f})"
                if again and value > 0:
                    value, note = 0.0, f"{note}, again"
                word = f"*{place.word}*" if value < 0 else place.word
                parts[-1].append((f"{word} {c:.2f}{note}", value))
        return parts

    def __call__(self, batch: CaptionBatch) -> Scores:
        sums = [sum(value for _, value in words) for words in self.parts(batch)]
        return [round(total / self.step) * self.step for total in sums]


def check(reward: Certainty, right: CaptionBatch, wrong: CaptionBatch) -> float:
    return win_rate(reward, right, wrong)
