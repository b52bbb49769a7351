"""Held-out scores of one evaluation, image by image, and how two evaluations compare.

A cosine grows with what a caption tells of its image, so a policy that says less, and less that is
wrong, falls by it. Beside it stands the share of doubtful words, which the scorer itself would
exchange for another of their class (evaluation/doubtful_words): a fall with fewer of those is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Any

import torch
from torch import Tensor

from ..evaluation.doubtful_words import MIN_JUDGED

CLEAR = 2.0  # standard errors, paired over images


@dataclass(frozen=True)
class HeldoutScores:
    """By image id: the cosine of its caption, its doubtful words, all that have an alternative."""

    cosines: dict[str, float] = field(default_factory=dict)
    doubtful: dict[str, int] = field(default_factory=dict)
    judged: dict[str, int] = field(default_factory=dict)

    @classmethod
    def by_image(cls, ids: Sequence[str], cosines_N: Tensor, words: tuple[Tensor, Tensor]) -> Any:
        """words: (N,) doubtful ones, (N,) judged ones."""
        columns = (x.tolist() for x in (cosines_N, *words))
        return cls(*(dict(zip(ids, column, strict=True)) for column in columns))

    @property
    def score(self) -> float:
        """The mean cosine; -inf before the first evaluation."""
        return sum(self.cosines.values()) / len(self.cosines) if self.cosines else float("-inf")

    def doubt(self) -> float:
        """Share of the judged words that are doubtful; NaN where none is judged."""
        judged = sum(self.judged.values())
        return sum(self.doubtful.values()) / judged if judged else nan

    def among(self, other: HeldoutScores) -> HeldoutScores:
        """Of the images that another evaluation has too."""
        shared = [i for i in self.cosines if i in other.cosines]
        cosines = {i: self.cosines[i] for i in shared}
        doubtful, judged = ({i: c[i] for i in shared} for c in (self.doubtful, self.judged))
        return HeldoutScores(cosines, doubtful, judged)

    def lead(self, other: HeldoutScores) -> tuple[float, float]:
        """Mean paired difference of cosines over shared images, and its standard error."""
        pairs = [(x, other.cosines[i]) for i, x in self.cosines.items() if i in other.cosines]
        return _mean_and_error(torch.tensor([a - b for a, b in pairs]))

    def doubt_over(self, other: HeldoutScores) -> tuple[float, float]:
        """By how much the share of doubtful words is higher, and its standard error, paired.

        Of a ratio of means by the delta method; NaN where either has no judged word.
        """
        mine, its = self.among(other), other.among(self)
        if not (sum(mine.judged.values()) and sum(its.judged.values())):
            return nan, nan
        influence = [s._influence() for s in (mine, its)]
        _, error = _mean_and_error(influence[0] - influence[1])
        return mine.doubt() - its.doubt(), error

    def excused(self, best: HeldoutScores) -> bool:
        """Whether fewer of its words are doubtful than of the best's, of half as many or more."""
        mine, its = self.among(best), best.among(self)
        enough = sum(mine.judged.values()) >= MIN_JUDGED * sum(its.judged.values())
        return enough and mine.doubt() < its.doubt()

    def clearly_above(self, other: HeldoutScores) -> bool:
        """By more than CLEAR standard errors, unless the other is excused."""
        lead, error = self.lead(other)
        return lead > CLEAR * error and not other.excused(self)

    def _influence(self) -> Tensor:
        """(N,) what each image does to the share of doubtful words."""
        x, y = (torch.tensor([*c.values()]).double() for c in (self.doubtful, self.judged))
        return (x - self.doubt() * y) / y.mean()


def _mean_and_error(values_N: Tensor) -> tuple[float, float]:
    """Mean and its standard error; NaN without values.

    The error by the bootstrap, which for a mean needs no drawing: the deviation (with N, not N - 1)
    by the root of N (Efron and Tibshirani 1993, chapter 5).
    """
    values = values_N.double()
    if not len(values):
        return nan, nan
    error = values.std(correction=0) / len(values) ** 0.5
    return values.mean().item(), error.item()
