"""Verdict at the head of a report: by the truth where it is known, else by the held-out scorer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..statistics import Estimate
from .formats import Evaluation
from .html import number, text

LONGER = 0.1  # a change of length above this share has to be mentioned beside every other


def box(level: str, title: str, sentences: Sequence[str]) -> str:
    """A verdict as HTML."""
    body = "".join(f"<p>{text(sentence)}</p>" for sentence in sentences)
    return f'<div class="verdict {level}"><p class="title">{text(title)}</p>{body}</div>'


def headline(evaluation: Evaluation, images: str) -> Iterator[str]:
    """The verdict on one run, as HTML; against the controls where they were measured."""
    if verdict := evaluation.verdict:
        title = (
            "Better than the best control" if verdict.better else "Not shown to beat the controls"
        )
        yield box("pass" if verdict.better else "warn", title, verdict.sentences)
        return
    change = evaluation.change
    words = change.get("mean_length")
    level, title, sentences = "warn", f"Evaluated on {images}", list[str]()
    if scored := _by_scorer(change, images):
        level, title, *sentences = scored
    if truth := _by_truth(change):
        sentences = [truth[2], *([f"{title}: {sentences[0]}"] if scored else [])]
        level, title = truth[:2]
    before = evaluation.base.get("mean_length", {"value": 0.0})["value"]
    if words and before and abs(words["value"]) > LONGER * before:
        times = (before + words["value"]) / before
        sentences += [
            f"Captions are {times:.1f} times as long as before; length alone moves many scores."
        ]
    sentences += [] if evaluation.controls else ["Controls were not measured."]
    yield box(level, title, sentences)


def _by_scorer(change: Mapping[str, Estimate], images: str) -> tuple[str, str, str] | None:
    """Level, title and sentence by the held-out scorer: its score, and the words that it doubts."""
    if (score := change.get("heldout_score")) is None:
        return None
    doubt = change.get("doubtful_words", {"value": 0.0, "low": 0.0, "high": 0.0})
    level, title = {
        ("pass", "pass"): ("pass", "prefers the trained captions and doubts fewer of their words"),
        ("pass", "warn"): ("pass", "prefers the trained captions"),
        ("pass", "fail"): ("warn", "prefers the trained captions, and doubts more of their words"),
        ("warn", "pass"): ("pass", "doubts fewer of the words"),
        ("warn", "warn"): ("warn", "shows no difference"),
        ("warn", "fail"): ("fail", "doubts more of the words"),
        # who says less, and less that is wrong, has a lower cosine
        ("fail", "pass"): ("warn", "finds less in the captions, and doubts fewer of their words"),
    }.get(
        (level_of(score, 1), level_of(doubt, -1)), ("fail", "prefers the captions before training")
    )
    doubtful = f", doubtful words {interval(doubt)}" if "doubtful_words" in change else ""
    sentence = f"{interval(score)}{doubtful} on {images}, 95\u00a0% interval."
    return level, f"The held-out scorer {title}", sentence


def _by_truth(change: Mapping[str, Estimate]) -> tuple[str, str, str] | None:
    """Level, title and sentence by the facts of drawn scenes, where they are known."""
    if not {"fact_f1", "hallucination_rate"} <= change.keys():
        return None
    f1, wrong = change["fact_f1"], change["hallucination_rate"]
    level, title = {
        ("pass", "pass"): ("pass", "More of what is there, less of what is not"),
        ("pass", "warn"): ("pass", "More of what is there, as many captions with a wrong fact"),
        ("pass", "fail"): ("warn", "More of what is there, and more of what is not"),
        ("warn", "pass"): ("pass", "As much of what is there, less of what is not"),
        ("warn", "warn"): ("warn", "No change of what is true is shown"),
        ("fail", "pass"): ("warn", "Less of what is there, and less of what is not"),
    }.get((level_of(f1, 1), level_of(wrong, -1)), ("fail", "Captions are no truer than before"))
    return level, title, f"Fact F1 {interval(f1)}, hallucinated {interval(wrong)}."


def level_of(change: Estimate, better: int) -> str:
    """pass or fail where the interval leaves 0 on one side, warn where it does not."""
    if change["low"] <= 0 <= change["high"] or not better:
        return "warn"
    return "pass" if (change["value"] > 0) == (better > 0) else "fail"


def interval(change: Estimate) -> str:
    """`+0.1 [+0.0, +0.2]`."""
    low, high = number(change["low"], True), number(change["high"], True)
    return f"{number(change['value'], True)} [{low}, {high}]"
