"""Thresholds of a verdict, and how its numbers are read and written.

An interval must be clear of CHANCE and COIN_ACCURACY; the others are plain values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

CHANCE = 0.5  # of two captions, the reward prefers the wrong one as often as the right one
MIN_WIN_RATE = 0.9  # wanted of every attack before any RL (REWARDS, reward unit tests)
MIN_SWAP_ACCURACY = 0.93  # sound scorers have .95 to .97 on scenes, a poor one .89
COIN_ACCURACY = 0.75  # a judge that is right less often is nearer to a coin than to knowledge
MIN_OF_FIVE = 0.5  # right word orders of five; CLIPs have .23 to .45 (ARO), chance is .2
MIN_IMAGE_WINS = 0.75  # original with its image against the same with another
MIN_POLICY_ACCURACY = 0.8  # of swaps; it was .6 in the sketch where RL took F1 from .63 to .25
MIN_IMAGES = 8  # that an attack must have been tried on to be reported
MIN_IN_REACH = 0.1  # share of attacked captions in reach; with more, training comes upon one
MIN_AGREEMENT = 0.3  # within-image rank correlation; the default recipe on scenes has .74
MAX_TIED = 0.5  # share of images whose captions the reward does not tell apart
FATAL_DISTINCT, MIN_DISTINCT = 2.0, 3.0  # different captions of eight: fail below, warn below
MAX_NOISE = 0.7  # a reward's spread under mild changes of the image, by its spread over captions
MAX_LENGTH_CORRELATION = 0.8  # within-image rank correlation with the number of words
MIN_GAIN = 0.5  # a gain on the held-out scorer, by its spread over the captions of an image
MIN_FEWER = 0.03  # a gain under a dial: so much smaller a share of doubtful words
SHOWN_TIES = 0.005  # share of ties that is worth a word

Lines = Iterator[dict[str, str]]
Number = Mapping[str, Any] | None  # an estimate, or picks


def line(level: str, about: str, says: str, do: str = "") -> dict[str, str]:
    """A finding: how grave it is, what it is about, a sentence, and what to do."""
    return {"level": level, "about": about, "says": says, "do": do}


def low(number: Number) -> float:
    """The lower end of the interval; minus infinity where there was nothing to measure."""
    return number["low"] if number else float("-inf")


def mean(number: Number, default: float) -> float:
    """The value, or the default where there was nothing to measure."""
    return number["value"] if number else default


def prefers_right(picks: Number) -> bool:
    """Whether right picks are clearly more than wrong ones: ties are neither."""
    return bool(picks and picks["low"] > picks["wrong"]["high"])


def prefers_wrong(picks: Number) -> bool:
    """Whether wrong picks are clearly more than right ones: this misleads."""
    return bool(picks and picks["wrong"]["low"] > picks["high"])


def often_wrong(picks: Number) -> bool:
    """Whether wrong picks are clearly more than those of a judge between a coin and knowledge."""
    return bool(picks and picks["wrong"]["low"] > 1 - COIN_ACCURACY)


def ignores_image(result: Mapping[str, Any]) -> bool:
    """Whether the base finds its captions no likelier with their image than with another."""
    return not prefers_right(result["controls"]["policy"])


def gain_of(headroom: Mapping[str, Any]) -> Number:
    """What choosing gains: under a dial fewer doubtful words, else held-out score."""
    doubtful = headroom.get("doubtful")
    return doubtful["gain"] if doubtful else headroom["gain_over_greedy"]


def percent(value: float) -> str:
    """A share, its unit on the same line."""
    return f"{100 * value:.0f}\N{NO-BREAK SPACE}%"


def shares(picks: Number) -> str:
    """Picks in words: what is right, what ties, what is wrong."""
    if not picks:
        return "no pair"
    tied = f", {percent(picks['tied'])} tied" if picks["tied"] > SHOWN_TIES else ""
    return f"{percent(picks['value'])} right{tied}, {percent(picks['wrong']['value'])} wrong"
