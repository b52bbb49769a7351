"""Against controls: what a trained model has to beat without training, and a verdict in words.

The best control, the base among them, is the one with the highest held-out score: chosen without a
label, and in the controls' favour. A dial asks for less, and less that is wrong, and a cosine falls
with what is told: under a dial it is the one with the smallest share of doubtful words, of those
that do not say next to nothing. Every comparison is paired, image by image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .before_after import HELDOUT, Columns, further_scorer
from .doubtful_words import MIN_JUDGED
from .statistics import CorpusMetric, Estimate, difference, estimates, holm, p_value
from .tables import ROWS, interval_text, number_text, title

DOUBTFUL = "doubtful_words"
BY_TRUTH = ("fact_f1", "cider_d")  # the first there is chooses where no scorer can
HEADLINE = ("retrieval_1", "fact_f1", "cider_d")  # beside what the best control is chosen by
UNDER_DIAL = ("fact_f1", "hallucination_rate", "cider_d", "chair_s")  # the same
LOWER = (DOUBTFUL, "hallucination_rate", "chair_s")  # is better; of all others higher
WRONG = ("hallucination_rate", "chair_s", "doubtful_rate")  # the first that there is
LEVEL, SAME_LENGTH = 0.05, 0.1
NO_VERDICT = (
    "The verdict over the controls is left out: without the held-out scorer, truth and references "
    "nothing says which of them is the best."
)
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


def against_controls(columns: Mapping[str, Columns], dial: bool = False) -> dict[str, Any]:
    """The keys "controls", "over_controls" and "verdict" of eval.json; no verdict: NO_VERDICT.

    columns: of "base", "trained" and each control, the same metrics (N,) each; dial: a reward asks
    how sure a word is.
    """
    controls = [row for row in columns if row not in ("base", "trained")]
    over = {row: _differences(columns, row) for row in controls}
    result: dict[str, Any] = {
        "controls": {row: estimates(columns[row]) for row in controls},
        "over_controls": {row: estimates(differences) for row, differences in over.items()},
    }
    if by := _chooser(columns["base"], dial):
        result["verdict"] = _verdict(columns, by, dial)
    return result


def _differences(columns: Mapping[str, Columns], row: str) -> Columns:
    return {metric: difference(columns["trained"][metric], v) for metric, v in columns[row].items()}


def _chooser(base: Columns, dial: bool) -> str | None:
    """The metric by which the best control is chosen; None where there is none."""
    cosines = (metric for metric in base if metric == HELDOUT or further_scorer(metric))
    choosers = ((DOUBTFUL,) if dial else (*cosines,)) + BY_TRUTH
    return next((metric for metric in choosers if metric in base), None)


def _best(columns: Mapping[str, Columns], by: str) -> str:
    """The best row without training, by a metric; by doubtful words, of those that say enough."""
    rows = [row for row in columns if row != "trained"]
    if by == DOUBTFUL:
        rows = [row for row in rows if _says_enough(columns[row], columns["base"])]
    values = {row: estimates({by: columns[row][by]})[by]["value"] for row in rows}
    return (min if by in LOWER else max)(values, key=values.__getitem__)


def _says_enough(row: Columns, other: Columns) -> bool:
    """Whether captions have at least MIN_JUDGED of the words with an alternative of others."""
    return _judged(row) >= MIN_JUDGED * _judged(other)


def _judged(row: Columns) -> float:
    """Words for which there is another, per caption."""
    column = row[DOUBTFUL]
    assert isinstance(column, CorpusMetric)
    return float(column.rows_NS[:, 1].mean())


def _verdict(columns: Mapping[str, Columns], by: str, dial: bool) -> dict[str, Any]:
    best = _best(columns, by)
    differences = _differences(columns, best)
    change = estimates(differences)
    headline = dict.fromkeys((by, *(UNDER_DIAL if dial else HEADLINE)))
    metrics = [metric for metric in headline if metric in differences]
    p_values = [p_value(differences[metric]) for metric in metrics]
    measured = dial and DOUBTFUL in differences
    enough = not measured or _says_enough(columns["trained"], columns[best])
    tests = [
        {
            "metric": metric,
            "control": best,
            "difference": change[metric],
            "p": p,
            "p_holm": adjusted,
            "better": _is_better(metric, change[metric]["value"], enough) and adjusted < LEVEL,
        }
        for metric, p, adjusted in zip(metrics, p_values, holm(p_values), strict=True)
    ]
    better = all(test["better"] for test in tests)
    trained, control = (estimates(columns[row]) for row in ("trained", best))
    lengths = trained["mean_length"]["value"], control["mean_length"]["value"]
    judged = (_judged(columns["trained"]), _judged(columns[best])) if measured else None
    sentences = [
        _better_sentence(tests, by, best, better),
        _wrong_sentence(change, trained, control, best),
        _enough_sentence(judged, lengths, enough) if judged else _length_sentence(*lengths),
    ]
    return {"better": better, "by": by, "sentences": sentences, "tests": tests}


def _is_better(metric: str, change: float, enough: bool) -> bool:
    """Whether a difference has the right sign; less that is wrong counts where enough is said."""
    return change < 0 and enough if metric in LOWER else change > 0


def _better_sentence(tests: list[dict[str, Any]], by: str, best: str, better: bool) -> str:
    parts = [
        f"{title(t['metric'])} {interval_text(t['difference'], t['metric'], 'change')} "
        f"(p {t['p_holm']:.3f}{_against(t)})"
        for t in tests
    ]
    begin = "Better" if better else "Not better throughout"
    rule = "" if by == HELDOUT else f" by {title(by)}"
    return f"{begin} than the best control{rule}, {ROWS[best]}: {', '.join(parts)}; p after Holm."


def _against(test: Mapping[str, Any]) -> str:
    """What a test that does not speak for training says."""
    if test["better"]:
        return ""
    wrong_way = (test["difference"]["value"] > 0) == (test["metric"] in LOWER)
    return ", worse" if wrong_way and test["p_holm"] < LEVEL else ", not shown"


def _wrong_sentence(
    change: Mapping[str, Estimate],
    trained: Mapping[str, Estimate],
    control: Mapping[str, Estimate],
    best: str,
) -> str:
    metric = next((metric for metric in WRONG if metric in change), None)
    if metric is None:
        return "Hallucination not measured: no truth, no objects and no held-out scorer are there."
    return (
        f"Hallucination {'worse' if change[metric]['low'] > 0 else 'not shown to be worse'}: "
        f"{title(metric)} {number_text(trained[metric]['value'], metric)}, {ROWS[best]} "
        f"{number_text(control[metric]['value'], metric)}, difference "
        f"{interval_text(change[metric], metric, 'change')}."
    )


def _length_sentence(trained: float, control: float) -> str:
    within = "within" if abs(_over(trained, control)) <= SAME_LENGTH else "not within"
    return (
        f"Length {within} {SAME_LENGTH:.0%}: {trained:.1f} words, the control {control:.1f} "
        f"({_over(trained, control):+.0%})."
    )


def _enough_sentence(
    judged: tuple[float, float], lengths: tuple[float, float], enough: bool
) -> str:
    """Under a dial, which may ask for less; (trained, control) words of a caption each."""
    says = "enough" if enough else "too little for less that is wrong to count"
    return (
        f"Says {says}: {judged[0]:.1f} words of a caption could be others, of the control's "
        f"{judged[1]:.1f} ({_over(*judged):+.0%}; from {MIN_JUDGED - 1:+.0%} on it is enough); in "
        f"all {lengths[0]:.1f} words, the control {lengths[1]:.1f} ({_over(*lengths):+.0%})."
    )


def _over(trained: float, control: float) -> float:
    """By which share the trained captions have more than the control's."""
    return trained / control - 1 if control else float("inf")
