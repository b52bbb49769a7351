"""Training, watched and held-out images by their content: no path, seed or machine moves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .duplicates import exact_repeats, near_repeats, nearest_row


@dataclass(frozen=True)
class ContentSplit:
    """Ids of three sets, each sorted, no two of which share an image or a near duplicate.

    left_out: image -> the held-out or watched one that it repeats or is near; exact, near: how
    many images repeat another one, and how many different ones are near another (at least).
    """

    train: list[str]
    watched: list[str]
    heldout: list[str]
    left_out: dict[str, str]
    exact: int
    near: int


def content_split(
    ids: Sequence[str], facts: np.ndarray, watched: int, heldout: int
) -> ContentSplit:
    """Split images: at most a fifth to hold out, a tenth to watch, the others to train on.

    facts: (N,) of `duplicates.FACTS`. Different contents, ordered by their hash: the first are held
    out, the next watched. What repeats one of those or is near it, is in none of the other sets: an
    image that is added later, or lies elsewhere, moves no more than the last of each set.
    """
    contents = facts["content"]
    order = np.unique(contents, return_index=True)[1]  # by hash; of repeats the first
    room = len(order)
    chosen_heldout = order[: min(heldout, room // 5)]
    rest = order[len(chosen_heldout) :]
    rest = rest[nearest_row(facts[rest], facts[chosen_heldout]) < 0]
    chosen_watched = rest[: min(watched, room // 10)]
    chosen = np.concatenate([chosen_heldout, chosen_watched])
    nearest = nearest_row(facts, facts[chosen])
    repeats = np.setdiff1d(np.flatnonzero(nearest >= 0), chosen)
    left_out = {ids[row]: ids[int(chosen[nearest[row]])] for row in repeats.tolist()}
    return ContentSplit(
        train=[ids[row] for row in np.flatnonzero(nearest < 0).tolist()],
        watched=sorted(ids[row] for row in chosen_watched.tolist()),
        heldout=sorted(ids[row] for row in chosen_heldout.tolist()),
        left_out=left_out,
        exact=exact_repeats(contents),
        near=near_repeats(facts),
    )
