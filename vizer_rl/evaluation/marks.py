"""Marks of words in a printed caption: doubtful ones and unsure ones, and what the marks mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .doubtful_words import LEGEND, MARK

UNSURE = "~"


def marked_words(
    caption: str, doubtful: Sequence[Mapping[str, Any]], unsure: Sequence[Mapping[str, Any]] = ()
) -> str:
    """A caption whose doubtful words stand between marks, its unsure ones before a certainty.

    "a *striped*~.31 circle": another word fits the image better, and this one has certainty .31.
    """
    doubts = {(word["start"], word["end"]) for word in doubtful}
    certainties = {(word["start"], word["end"]): word["certainty"] for word in unsure}
    for start, end in sorted(doubts | certainties.keys(), reverse=True):
        text = caption[start:end]
        if (start, end) in doubts:
            text = f"{MARK}{text}{MARK}"
        if (start, end) in certainties:
            text += f"{UNSURE}{certainties[start, end]:.2f}".replace("0.", ".", 1)
        caption = f"{caption[:start]}{text}{caption[end:]}"
    return caption


def legend(rows: Iterable[Mapping[str, Any]], at_least: float) -> list[str]:
    """A sentence for each mark that stands in these rows; at_least: the dial of certainty."""
    rows = [*rows]
    sentences = [LEGEND] if any(row.get("doubtful") for row in rows) else []
    if any(row.get("unsure") for row in rows):
        sentences.append(unsure_legend(at_least))
    return sentences


def unsure_legend(at_least: float) -> str:
    """What the mark of an unsure word means."""
    return (
        f"word{UNSURE}.31: the policy before training is sure of it with .31, among the words of "
        f"its class; marked below {at_least:g}."
    )
