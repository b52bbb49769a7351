"""How sure a mean is: percentile bootstrap intervals over images."""

from __future__ import annotations

from collections.abc import Mapping
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
