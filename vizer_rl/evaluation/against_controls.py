"""Against controls: what a trained model has to beat without training, and a verdict in words.

The best control, the base among them, is the one with the highest held-out score: chosen without a
label, and in the controls' favour. Every comparison is paired, image by image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .before_after import Columns
from .statistics import Estimate, difference, estimates, holm, p_value
from .tables import LABELS, ROWS, interval_text, number_text

CHOSEN_BY = "heldout_score"
HEADLINE = ("heldout_score", "retrieval_1", "fact_f1", "cider_d")  # the higher the better
WRONG = ("hallucination_rate", "chair_s", "doubtful_rate")  # the first that there is
LEVEL, SAME_LENGTH = 0.05, 0.1
# Row ("base", "trained") to each image's raw scores by reward, and their weighted "sum"; None where
# a reward does not judge the caption.
CaptionRewards = Mapping[str, list[dict[str, float | None]]]


@dataclass(frozen=True)
class Control:
    """Captions of the same images without training, and a sentence on how they came about."""

    captions: list[str]
    how: str


@dataclass(frozen=True)
class Controls:
    """Control rows by name, and what the run's rewards say of the captions before and after."""

    rows: Mapping[str, Control]
    rewards: CaptionRewards


def against_controls(columns: Mapping[str, Columns]) -> dict[str, Any]:
    """The keys "controls", "over_controls" and "verdict" of eval.json.

    columns: of "base", "trained" and each control, the same metrics (N,) each.
    """
    controls = [row for row in columns if row not in ("base", "trained")]
    over = {row: _differences(columns, row) for row in controls}
    means = {row: estimates(columns[row])[CHOSEN_BY]["value"] for row in ("base", *controls)}
    best = max(means, key=means.__getitem__)
    return {
        "controls": {row: estimates(columns[row]) for row in controls},
        "over_controls": {row: estimates(differences) for row, differences in over.items()},
        "verdict": _verdict(columns, best),
    }


def _differences(columns: Mapping[str, Columns], row: str) -> Columns:
    return {metric: difference(columns["trained"][metric], v) for metric, v in columns[row].items()}


def _verdict(columns: Mapping[str, Columns], best: str) -> dict[str, Any]:
    differences = _differences(columns, best)
    change = estimates(differences)
    headline = {m: d for m in HEADLINE if isinstance(d := differences.get(m), np.ndarray)}
    p_values = [p_value(difference_N) for difference_N in headline.values()]
    tests = [
        {
            "metric": metric,
            "control": best,
            "difference": change[metric],
            "p": p,
            "p_holm": adjusted,
            "better": change[metric]["value"] > 0 and adjusted < LEVEL,
        }
        for metric, p, adjusted in zip(headline, p_values, holm(p_values), strict=True)
    ]
    wrong = next(metric for metric in WRONG if metric in differences)
    better = all(test["better"] for test in tests)
    trained, control = (estimates(columns[row]) for row in ("trained", best))
    sentences = [
        _better_sentence(tests, best, better),
        _wrong_sentence(
            wrong, change[wrong], trained[wrong]["value"], control[wrong]["value"], best
        ),
        _length_sentence(trained["mean_length"]["value"], control["mean_length"]["value"]),
    ]
    return {"better": better, "sentences": sentences, "tests": tests}


def _better_sentence(tests: list[dict[str, Any]], best: str, better: bool) -> str:
    parts = [
        f"{LABELS[t['metric']]} {interval_text(t['difference'], t['metric'], 'change')} "
        f"(p {t['p_holm']:.3f}{'' if t['better'] else ', not shown'})"
        for t in tests
    ]
    begin = "Better" if better else "Not better throughout"
    return f"{begin} than the best control, {ROWS[best]}: {', '.join(parts)}; p after Holm."


def _wrong_sentence(
    metric: str, change: Estimate, trained: float, control: float, best: str
) -> str:
    return (
        f"Hallucination {'worse' if change['low'] > 0 else 'not shown to be worse'}: "
        f"{LABELS[metric]} {number_text(trained, metric)}, {ROWS[best]} "
        f"{number_text(control, metric)}, difference {interval_text(change, metric, 'change')}."
    )


def _length_sentence(trained: float, control: float) -> str:
    ratio = trained / control - 1 if control else float("inf")
    within = "within" if abs(ratio) <= SAME_LENGTH else "not within"
    return (
        f"Length {within} {SAME_LENGTH:.0%}: {trained:.1f} words, the control {control:.1f} "
        f"({ratio:+.0%})."
    )
