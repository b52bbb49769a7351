"""Paired metrics of captions before and after training, with bootstrap intervals (eval.json)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .metrics import scene_facts
from .statistics import Column, difference, estimates

Truths = Sequence[Mapping[str, Any]] | None  # of drawn scenes
Columns = dict[str, Column]  # by metric
HELDOUT = "heldout_score"  # of the run's held-out scorer; of another one HELDOUT:NAME


def heldout_metric(scorer: str) -> str:
    """The metric that is the held-out score of a further scorer."""
    return f"{HELDOUT}:{scorer}"


def further_scorer(metric: str) -> str:
    """The further held-out scorer of a metric; "" where it is none's."""
    return metric.removeprefix(f"{HELDOUT}:") if metric.startswith(f"{HELDOUT}:") else ""


def score_key(metric: str) -> str:
    """What a held-out score is called in captions.jsonl: "score", or "score:NAME"."""
    return metric.removeprefix("heldout_")


@dataclass(frozen=True)
class Pair:
    """An image's greedy captions before and after training, and their held-out cosines."""

    image_id: str
    base: str
    trained: str
    base_cosine: float = math.nan  # not scored
    trained_cosine: float = math.nan


def columns_of(
    captions: Sequence[str], cosines: Mapping[str, Sequence[float]], truths: Truths
) -> Columns:
    """The metrics of N captions (N,) each: of their facts where there is truth, words, cosines.

    cosines: by metric, HELDOUT or `heldout_metric`, those of each held-out scorer.
    """
    columns: Columns = {**(scene_facts.columns(captions, truths) if truths else {})}
    columns["mean_length"] = np.array([len(text.split()) for text in captions], float)
    return columns | {metric: np.array(values, float) for metric, values in cosines.items()}


def summary(pairs: Sequence[Pair], truths: Truths = None) -> dict[str, Any]:
    """`before_after` of pairs, with the metrics that `columns_of` gives."""
    base = [p.base for p in pairs], {HELDOUT: [p.base_cosine for p in pairs]}
    trained = [p.trained for p in pairs], {HELDOUT: [p.trained_cosine for p in pairs]}
    sides = {"base": base, "trained": trained}
    columns = {side: columns_of(*row, truths) for side, row in sides.items()}
    return before_after(columns, {side: texts for side, (texts, _) in sides.items()}, truths)


def before_after(
    columns: Mapping[str, Columns], captions: Mapping[str, Sequence[str]], truths: Truths = None
) -> dict[str, Any]:
    """The content of eval.json: each metric before, after and its paired change, with intervals.

    columns, captions: of "base" and "trained", N images each; other rows are left alone.
    """
    base, trained = columns["base"], columns["trained"]
    change = {name: difference(column, base[name]) for name, column in trained.items()}
    result: dict[str, Any] = {"n_images": len(captions["base"])}
    for side, metrics in (("base", base), ("trained", trained), ("change", change)):
        result[side] = estimates(metrics)
    if truths:
        result["by_kind"] = {
            side: scene_facts.recall_by_kind(captions[side], truths) for side in ("base", "trained")
        }
        lengths = [len(truth["caption"].split()) for truth in truths]
        result["truth_mean_length"] = sum(lengths) / len(lengths)
    return result
