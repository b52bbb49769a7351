"""Picks of a judge between captions, in three ways: the original, neither, an attacked one.

A tie is not a wrong pick and not a right one: a judge that ties does not mislead, nor does it help.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np

from ..evaluation.statistics import Estimate, estimate, per_image

ROUNDING = 1e-5  # of a judge's spread: scores that are nearer to each other differ by rounding
RIVALS = 3  # attacked captions beside the original where one of four is chosen


class Picks(Estimate):
    """Share of right picks with its interval, share of ties, share of wrong picks with its own."""

    tied: float
    wrong: Estimate


def signs(better_P: np.ndarray, worse_P: np.ndarray) -> np.ndarray:
    """(P,) 1 where the original scores higher, 0 for a tie, -1 else; NaN where one has no score."""
    both = np.concatenate([better_P, worse_P])
    judged = both[~np.isnan(both)]
    spread = judged.std() if judged.size else 0.0
    margin = np.asarray(better_P - worse_P, float)
    return np.where(np.abs(margin) <= ROUNDING * spread, 0.0, np.sign(margin))


def picks(sign_P: np.ndarray, images: Sequence[int]) -> Picks | None:
    """Of pairs, by their signs and images; None where there is none."""
    judged = ~np.isnan(sign_P)
    right, wrong = (
        per_image(np.where(judged, sign_P * side > 0, np.nan), images) for side in (1, -1)
    )
    return _shares(right, wrong)


def one_of_four(sign_P: np.ndarray, images: Sequence[int]) -> Picks | None:
    """Of the original against RIVALS attacked captions of its image at the same time.

    Exact over all choices of rivals; right where it beats all of them, wrong where one beats it.
    """
    image_P, judged = np.asarray(images), ~np.isnan(sign_P)
    right, wrong = [], []
    for n in np.unique(image_P[judged]):
        own = sign_P[judged & (image_P == n)]
        if len(own) >= RIVALS:
            ways = comb(len(own), RIVALS)
            right.append(comb(int((own > 0).sum()), RIVALS) / ways)
            wrong.append(1 - comb(int((own >= 0).sum()), RIVALS) / ways)
    return _shares(np.array(right), np.array(wrong))


def weakest(sign_P: np.ndarray, images: Sequence[int], count: int) -> tuple[np.ndarray, list[int]]:
    """The lowest sign of each image that has `count` pairs, for it against all, and the images."""
    image_P = np.asarray(images, int)
    whole = [int(n) for n in np.unique(image_P) if (image_P == n).sum() == count]
    return np.array([sign_P[image_P == n].min() for n in whole]), whole


def _shares(right_N: np.ndarray, wrong_N: np.ndarray) -> Picks | None:
    right, wrong = estimate(right_N), estimate(wrong_N)
    if right is None or wrong is None:
        return None
    tied = max(0.0, 1.0 - right["value"] - wrong["value"])
    return {**right, "tied": round(tied, 9), "wrong": wrong}
