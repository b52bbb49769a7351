"""Table of a rollout's captions: every reward, what each adds to the advantage, and flags."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..algorithms.last_rollout import RolloutRecord
from ..errors import printable
from ..scoring.aggregation import weighted_sum

MAX_ROWS = 64


def weighted_rewards(record: RolloutRecord) -> list[float]:
    """The weighted sum of each completion's raw rewards; without those that nothing judged."""
    total_N = weighted_sum(record.rewards_NK, torch.tensor(record.weights).to(record.rewards_NK))
    values: list[float] = total_N[~total_N.isnan()].tolist()
    return values


def rollout_table(
    step: int,
    record: RolloutRecord,
    parts_NK: Tensor,
    cosines: Callable[[Sequence[str], Sequence[str]], Tensor],
) -> tuple[list[str], list[list[Any]], list[str]]:
    """Columns, rows and the image id of each row: whole groups, MAX_ROWS or one group.

    parts_NK: what each reward adds to the advantage; a share is its part of all that is added or
    taken off, so the shares' sizes sum to 1. cosines: of images (ids) and captions, held-out.
    """
    count = max(record.group, MAX_ROWS // record.group * record.group)
    ids, captions = record.image_ids[:count], record.captions[:count]
    heldout = cosines(ids, captions).tolist()
    size_N1 = parts_NK.abs().sum(1, keepdim=True)
    shares_NK = torch.where(size_N1 > 0, parts_NK / size_N1, 0.0).tolist()
    rewards_NK, advantages = record.rewards_NK.tolist(), record.advantages_N.tolist()
    marks = flags(record, heldout)
    columns = ["step", "image_id", "caption"]
    columns += [f"reward/{name}" for name in record.reward_names]
    columns += [f"share/{name}" for name in record.reward_names]
    columns += ["advantage", "heldout", "ended", "length", "flags"]
    rows = [
        [
            *(step, printable(ids[n]), printable(captions[n])),
            *(None if math.isnan(value) else value for value in rewards_NK[n]),
            *shares_NK[n],
            *(advantages[n], heldout[n], record.ended[n], record.lengths[n], ", ".join(marks[n])),
        ]
        for n in range(len(ids))
    ]
    return columns, rows, list(ids)


def flags(record: RolloutRecord, heldout: Sequence[float]) -> list[list[str]]:
    """What is odd about each of the first completions, as many as there are held-out cosines.

    `held-out disagrees`: of its group the highest advantage and the lowest cosine.
    """
    marks: list[list[str]] = []
    for start in range(0, len(heldout), record.group):
        group = range(start, min(start + record.group, len(heldout)))
        captions = [record.captions[n] for n in group]
        advantages = [float(record.advantages_N[n]) for n in group]
        flat, lowest = len(set(advantages)) == 1, min(heldout[n] for n in group)
        for n, advantage in zip(group, advantages, strict=True):
            best = not flat and advantage == max(advantages)
            conditions = {
                "no end": not record.ended[n],
                "empty": not record.captions[n],
                "repeated in its group": captions.count(record.captions[n]) > 1,
                "group without spread": flat,
                "held-out disagrees": best and heldout[n] == lowest,
            }
            marks.append([name for name, holds in conditions.items() if holds])
    return marks
