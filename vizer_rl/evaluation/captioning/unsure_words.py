"""Unsure words: those that the policy before training finds less certain than the dial asks.

    c(w) = p(w | image, caption so far) / sum over the class of w of p(v | image, caption so far)

as the reward `certainty` has it, with the dial and the temperature of the run where it has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL.Image import Image
from typing_extensions import TypedDict  # typing's is no type for pydantic before Python 3.12

from rewards import ReferencePolicy
from rewards.lib.images import Picked
from rewards.lib.reliability import tempered
from rewards.lib.rivals import with_rivals, within_class
from rewards.lib.text import SCAFFOLD
from rewards.lib.word_classes import WordClasses

from ...config.schema import Run
from ...files import read_json

DIAL = 0.8  # the reward's own


class UnsureWord(TypedDict):
    """Characters of the caption from start up to end, and how certain its word is, 0 to 1."""

    start: int
    end: int
    word: str
    certainty: float


class _Dial(TypedDict):
    """What the reward `certainty` has learned, in a run's rewards/certainty.json."""

    at_least: float
    temperature: float


class UnsureWords:
    """Finds the unsure words of captions."""

    def __init__(
        self,
        reference: ReferencePolicy,
        classes: WordClasses,
        at_least: float = DIAL,
        temperature: float = 1.0,
    ) -> None:
        self.reference, self.classes = reference, classes
        self.at_least, self.temperature = at_least, temperature

    def __call__(self, captions: Sequence[str], images: Sequence[Image]) -> list[list[UnsureWord]]:
        """Per caption its unsure words, in their order."""
        places = [
            [with_rivals(c, p) for p in self.classes.places(c) if p.word not in SCAFFOLD]
            for c in captions
        ]
        rows = [row for row, own in enumerate(places) if own]  # the others need no pass
        read = self.reference.word_probs(
            [captions[row] for row in rows], [places[row] for row in rows], Picked(images, rows)
        )
        unsure: list[list[UnsureWord]] = [[] for _ in captions]
        for row, probabilities in zip(rows, read, strict=True):
            for p, group in zip(places[row], probabilities, strict=True):
                certainty = float(tempered(within_class(group, p), self.temperature)[0])
                if certainty < self.at_least:
                    c = round(certainty, 4)
                    unsure[row].append(
                        {"start": p.start, "end": p.end, "word": p.word, "certainty": c}
                    )
        return unsure


def dial(run: Run, run_directory: Path | None) -> tuple[float, float]:
    """The dial and the temperature of a run; .8 and 1 where it has no reward `certainty`."""
    learned = run_directory / "rewards" / "certainty.json" if run_directory else None
    if learned is not None and learned.is_file():
        table: _Dial = read_json(learned, _Dial)
        return table["at_least"], table["temperature"]
    settings = run.rewards.get("certainty", {})
    return float(settings.get("at_least", DIAL)), float(settings.get("temperature") or 1.0)
