"""Bootstrap intervals over images, then rank statistics of scores within groups.

NaN is a missing score. Axes: N images, G captions of an image, K rewards, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from typing import TypedDict

import numpy as np

RESAMPLES = 2000
LEVEL = 95.0  # per cent


class Estimate(TypedDict):
    """A mean and its interval."""

    value: float
    low: float
    high: float


def estimates(columns: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, Estimate]:
    """The mean of each column (N,) with one number per image, and its 95 % interval.

    Every column is resampled with the same images. Two runs over the same N images are compared by
    the estimate of their difference per image, `trained - base`: that is the paired bootstrap.
    """
    values_NM = np.stack([np.asarray(c, np.float64) for c in columns.values()], axis=1)
    n = len(values_NM)
    rng = np.random.default_rng(seed)
    drawn_RN = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)  # how often each image
    means_RM = drawn_RN @ values_NM / n
    low_M, high_M = np.percentile(means_RM, [50 - LEVEL / 2, 50 + LEVEL / 2], axis=0)
    rows = zip(columns, values_NM.mean(0), low_M, high_M, strict=True)
    return {
        name: {"value": float(value), "low": float(low), "high": float(high)}
        for name, value, low, high in rows
    }


def estimate(values_N: np.ndarray) -> Estimate | None:
    """Mean and 95 % bootstrap interval of the numbers that are not NaN; None where all are."""
    values = np.asarray(values_N, np.float64)
    values = values[~np.isnan(values)]
    return estimates({"": values})[""] if len(values) else None


def per_image(values_P: np.ndarray, image_P: Sequence[int]) -> np.ndarray:
    """(N,) the mean over the pairs of each image that has any: intervals are over images."""
    images, values = np.asarray(image_P), np.asarray(values_P, np.float64)
    kept = ~np.isnan(values)
    return np.array([values[kept & (images == i)].mean() for i in np.unique(images[kept])])


def number(value: float) -> float | None:
    """The value, or None for NaN, which JSON does not have."""
    return None if np.isnan(value) else float(value)


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; 0 where all is."""
    valid = ~np.isnan(values)
    return np.nan_to_num(values).sum(-1) / np.maximum(valid.sum(-1), 1)


def wins(better_P: np.ndarray, worse_P: np.ndarray) -> np.ndarray:
    """(P,) 1 where the first scores higher, .5 for a tie, 0 else; NaN where one has no score."""
    won = (better_P > worse_P) + 0.5 * (better_P == worse_P)
    return np.where(np.isnan(better_P) | np.isnan(worse_P), np.nan, won)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing their mean rank."""
    _, where, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[where]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman correlation over what has a score in both; NaN where either does not vary."""
    kept = ~(np.isnan(x) | np.isnan(y))
    if kept.sum() < 2:
        return float("nan")
    a, b = ranks(x[kept]), ranks(y[kept])
    if a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def within(x_NG: np.ndarray, y_NG: np.ndarray) -> np.ndarray:
    """(N,) Spearman correlation within each group.

    0 where x is tied and y is not: it orders nothing. NaN where y is tied: nothing to order.
    """
    correlation = np.array([spearman(x, y) for x, y in zip(x_NG, y_NG, strict=True)])
    to_order = np.array([np.unique(y[~np.isnan(y)]).size > 1 for y in y_NG])
    return np.where(to_order, np.nan_to_num(correlation), np.nan)


def best_of(ranking_NG: np.ndarray, value_NG: np.ndarray, n: int) -> np.ndarray:
    """(N,) expected value of the caption that the ranking puts first of n drawn from the G.

    Exact over all draws without repetition; captions that tie share.
    """
    G = ranking_NG.shape[1]
    expected = []
    for rank, value in zip(ranking_NG, value_NG, strict=True):
        total, below = 0.0, 0
        for level in np.unique(rank):
            tied = rank == level
            up_to = below + int(tied.sum())
            share = (comb(up_to, n) - comb(below, n)) / comb(G, n)
            total += share * float(value[tied].mean())
            below = up_to
        expected.append(total)
    return np.array(expected)


def shuffle_apart(count: int, step: int) -> list[int]:
    """A derangement of `count` images: the index of another one for each, `step` further on."""
    step = 1 + step % max(1, count - 1)
    return [(i + step) % count for i in range(count)]
