"""Paired metrics of captions before and after training, with bootstrap intervals (eval.json)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .metrics import scene_facts
from .statistics import estimates


@dataclass(frozen=True)
class Pair:
    """An image's greedy captions before and after training, and their held-out cosines."""

    image_id: str
    base: str
    trained: str
    base_cosine: float = math.nan  # not scored
    trained_cosine: float = math.nan


def summary(
    pairs: Sequence[Pair], truths: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """The content of eval.json: each metric before, after and its paired change, with intervals."""
    captions = {"base": [p.base for p in pairs], "trained": [p.trained for p in pairs]}
    cosines = {
        "base": [p.base_cosine for p in pairs],
        "trained": [p.trained_cosine for p in pairs],
    }
    columns: dict[str, dict[str, np.ndarray]] = {}
    for side, texts in captions.items():
        columns[side] = scene_facts.columns(texts, truths) if truths else {}
        columns[side]["mean_length"] = np.array([len(text.split()) for text in texts], float)
        columns[side]["heldout_score"] = np.array(cosines[side], float)
    columns["change"] = {k: columns["trained"][k] - v for k, v in columns["base"].items()}
    result: dict[str, Any] = {"n_images": len(pairs)}
    result |= {side: estimates(column) for side, column in columns.items()}
    if truths:
        result["by_kind"] = {s: scene_facts.recall_by_kind(c, truths) for s, c in captions.items()}
        lengths = [len(truth["caption"].split()) for truth in truths]
        result["truth_mean_length"] = sum(lengths) / len(lengths)
    return result
