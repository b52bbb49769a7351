"""Fact precision, recall and hallucination rate of captions of drawn scenes, per caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from ....errors import UserError
from ....files import read_json
from .facts import KINDS, by_kind, score

Truths = Sequence[Mapping[str, Any]]  # scenes as scenes.json has them


class _Object(BaseModel):
    shape: str
    colour: str
    size: str
    fill: str
    x: int
    y: int
    r: int


class _Truth(BaseModel, extra="allow"):
    objects: list[_Object] = Field(min_length=1)
    relation: str | None
    caption: str


def read_truth(path: Path, ids: Sequence[str], split: str) -> dict[str, Any]:
    """The truth of a split's scenes, by image id; UserError where it is damaged or lacks one."""
    truths = read_json(path, dict[str, _Truth])
    missing = [image_id for image_id in ids if image_id not in truths]
    if missing:
        raise UserError(f"{path} lacks {len(missing)} {split} scenes, the first: {missing[0]}")
    return {image_id: truths[image_id].model_dump() for image_id in ids}


def columns(captions: Sequence[str], truths: Truths) -> dict[str, np.ndarray]:
    """Per metric one number per caption (N,), to be averaged over images.

    The mean of F1s is not the F1 of means: every image counts the same, however many facts it has.
    A caption that claims nothing has precision 0, for saying nothing is no way to be right, and
    hallucinates nothing.
    """
    scores = [score(caption, truth) for caption, truth in zip(captions, truths, strict=True)]
    return {
        "fact_f1": np.array([s.f1 for s in scores]),
        "fact_precision": np.array([s.precision for s in scores]),
        "fact_recall": np.array([s.recall for s in scores]),
        "hallucination_rate": np.array([float(s.hallucinated) for s in scores]),
    }


def recall_by_kind(captions: Sequence[str], truths: Truths) -> dict[str, float | None]:
    """Share of all facts of each kind that the captions state; None where no scene has one."""
    counts = [by_kind(caption, truth) for caption, truth in zip(captions, truths, strict=True)]
    recalled = {kind: sum(c[kind][0] for c in counts) for kind in KINDS}
    total = {kind: sum(c[kind][1] for c in counts) for kind in KINDS}
    return {kind: recalled[kind] / total[kind] if total[kind] else None for kind in KINDS}
