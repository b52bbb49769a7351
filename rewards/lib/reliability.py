"""Reliability of probabilities without labels: do views of the same image agree with them?

Certainty c says how often the word is right; mildly changed views of the image, for which the
policy should mean the same, say how often it stays with it. Where they agree less than c says, the
probabilities are too sharp, and a temperature above 1 makes them fit. Views that agree in an error
do not show it: this finds probabilities that are too sharp, not those that are wrong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

EDGES = (0.0, 0.5, 0.65, 0.8, 0.9, 0.95, 1.0)
TEMPERATURES = [1.0 + 0.05 * k for k in range(81)]  # up to 5
CHANCE = 0.5
FLOOR = 1e-3
TINY = 1e-6  # a probability below is taken for it: no view can rule a word out for good


def tempered(probabilities: Tensor, temperature: float) -> Tensor:
    """(1 + A,) probabilities whose logarithms are divided by the temperature."""
    if temperature == 1.0:
        return probabilities
    return (probabilities.clamp(min=TINY).log() / temperature).softmax(0)


def sight(probabilities: Tensor, blank: Tensor) -> float:
    """A word's certainty by sight: where before looking it is as likely as all else together.

    probabilities, blank: (n,) of the word and what else may stand there, on its image and on a
    blank one. The logarithm of the ratio of both odds is what looking says for the word, its weight
    of evidence (Good 1950); FLOOR is added to each side, so that it is finite.
    """
    own, prior = ((p[0] + FLOOR) / (p[1:].sum() + FLOOR) for p in (probabilities, blank))
    return float(own / (own + prior))


def fit_temperature(own: Sequence[Tensor], views: Sequence[Tensor]) -> float:
    """The temperature, of 1 or more, at which `own` foretells best what the views would say.

    own, views: per word its probability and its alternatives', on the image and the mean over
    views of it. Best: the lowest cross-entropy of words drawn from the views.
    """
    if not own:
        return 1.0

    def loss(temperature: float) -> float:
        pairs = zip(own, views, strict=True)
        return sum(-float(v @ tempered(p, temperature).clamp(min=TINY).log()) for p, v in pairs)

    return min(TEMPERATURES, key=loss)


@dataclass(frozen=True)
class Bin:
    """Words whose certainty is above `low` and at most `high`.

    words: how many; certainty, agreement: their mean, and the mean probability of the word under
    the views.
    """

    low: float
    high: float
    words: int
    certainty: float
    agreement: float


@dataclass(frozen=True)
class Reliability:
    """The temperature, and how far the views agree with the certainties after it."""

    temperature: float
    bins: tuple[Bin, ...]

    @classmethod
    def measure(
        cls, own: Sequence[Tensor], views: Sequence[Tensor], temperature: float
    ) -> Reliability:
        """Of words as `fit_temperature` takes them."""
        c = torch.tensor([float(tempered(p, temperature)[0]) for p in own])
        agreement = torch.tensor([float(p[0]) for p in views])
        bins = []
        for low, high in pairwise(EDGES):
            within = (c > low) & (c <= high)
            if within.any():
                means = float(c[within].mean()), float(agreement[within].mean())
                bins.append(Bin(low, high, int(within.sum()), *means))
        return cls(temperature, tuple(bins))

    def sentence(self) -> str:
        """The table in one line."""
        rows = [f"{b.certainty:.2f} → {b.agreement:.2f} ({b.words})" for b in self.bins]
        return (
            f"certainty → agreement of views (words), at temperature {self.temperature:.2f}: "
            + ", ".join(rows)
        )

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def sight_objection(own: Sequence[Tensor], other: Sequence[Tensor]) -> str:
    """Why certainty cannot work here: the words are no surer with their image; else nothing.

    own, other: as above, on the image of their caption and on another one.
    """
    pairs = [(float(a[0]), float(b[0])) for a, b in zip(own, other, strict=True)]
    wins = sum(float(a > b) + 0.5 * float(a == b) for a, b in pairs) / len(pairs)
    if wins - len(pairs) ** -0.5 > CHANCE:  # two standard errors, sqrt(.25 / n) each
        return ""
    return (
        f"the base is no surer of its words with their image than with another ({wins:.0%} of "
        f"{len(pairs)} words, 50 % is chance): this reward cannot work here"
    )
