"""Bootstrap intervals over images, then rank statistics of scores within groups.

NaN is a missing score. Axes: N images, G captions of an image, K rewards, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from typing_extensions import TypedDict  # typing's is no type for pydantic before Python 3.12

RESAMPLES = 2000
LEVEL = 95.0  # per cent


class Estimate(TypedDict):
    """A mean and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class CorpusMetric:
    """A metric of a corpus that is no mean over images: `value` of the sums (…, S) of `rows_NS`."""

    rows_NS: np.ndarray
    value: Callable[[np.ndarray], np.ndarray]


Column = np.ndarray | CorpusMetric  # (N,) one number per image, or sums over images


def ratio(sums: np.ndarray) -> np.ndarray:
    """The first of two sums (…, 2) by the second; 0 where that is 0: nothing is hallucinated."""
    return sums[..., 0] / np.maximum(sums[..., 1], 1)


def difference(column: Column, other: Column) -> Column:
    """Column − other, paired image by image, of the same metric on the same images."""
    if isinstance(column, CorpusMetric) and isinstance(other, CorpusMetric):
        S, value, value_other = column.rows_NS.shape[1], column.value, other.value

        def change(sums: np.ndarray) -> np.ndarray:
            return value(sums[..., :S]) - value_other(sums[..., S:])

        return CorpusMetric(np.hstack([column.rows_NS, other.rows_NS]), change)
    return np.asarray(column) - np.asarray(other)


def estimates(columns: Mapping[str, Column], seed: int = 0) -> dict[str, Estimate]:
    """Each metric of N images with its 95 % interval; a column (N,) counts by its mean.

    Every column is resampled with the same images; one that has no number for an image (NaN), by
    itself over the images that it has. Two runs over the same N images are compared by the estimate
    of their difference per image, `trained - base`: that is the paired bootstrap.
    """
    result = dict[str, Estimate]()
    means = {name: c for name, c in columns.items() if not isinstance(c, CorpusMetric)}
    partial = {name for name, c in means.items() if 0 < np.isnan(c).sum() < len(c)}
    whole = {name: c for name, c in means.items() if name not in partial}
    first = next(iter(columns.values()))
    n = len(first.rows_NS if isinstance(first, CorpusMetric) else first)
    drawn_RN = _drawn(n, seed)
    if whole:
        values_NM = np.stack([np.asarray(c, np.float64) for c in whole.values()], axis=1)
        means_RM = drawn_RN @ values_NM / n
        points = zip(values_NM.mean(0), means_RM.T, strict=True)
        result |= {name: _interval(*p) for name, p in zip(whole, points, strict=True)}
    for name, column in columns.items():
        if isinstance(column, CorpusMetric):
            total = column.value(column.rows_NS.sum(0))
            result[name] = _interval(total, column.value(drawn_RN @ column.rows_NS))
        elif name in partial:
            result |= estimates({name: column[~np.isnan(column)]}, seed)
    return {name: result[name] for name in columns}


def _drawn(n: int, seed: int) -> np.ndarray:
    """(R, N) how often each of N images is drawn in each resample."""
    drawn_RN = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    return drawn_RN.astype(np.float64)


def p_value(differences: Column, seed: int = 0) -> float:
    """Two-sided p of a difference of 0, of means or of a corpus, by the paired bootstrap.

    It is 2 / (R + 1) or more. Images that have no number (NaN) are left out.
    """
    if isinstance(differences, CorpusMetric):
        rows_NS = differences.rows_NS
        means_R = differences.value(_drawn(len(rows_NS), seed) @ rows_NS)
    else:
        values = np.asarray(differences, np.float64)
        values = values[~np.isnan(values)]
        means_R = _drawn(len(values), seed) @ values / len(values)
    tail = min((means_R <= 0).sum(), (means_R >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (RESAMPLES + 1)))


def holm(p_M: Sequence[float]) -> list[float]:
    """p-values of M tests, adjusted so that one false alarm among all stays as rare (Holm 1979)."""
    adjusted, highest = [0.0] * len(p_M), 0.0
    for rank, m in enumerate(sorted(range(len(p_M)), key=p_M.__getitem__)):
        highest = max(highest, min(1.0, (len(p_M) - rank) * p_M[m]))
        adjusted[m] = highest
    return adjusted


def _interval(value: float | np.ndarray, resampled_R: np.ndarray) -> Estimate:
    low, high = np.percentile(resampled_R, [50 - LEVEL / 2, 50 + LEVEL / 2])
    return {"value": float(value), "low": float(low), "high": float(high)}


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
