"""The head of a report: verdict, metrics before and after, controls, several runs paired."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..statistics import Estimate, estimate
from .formats import CaptionRow, Evaluation
from .headline import box, headline, interval, level_of
from .html import number, table, text
from .labels import DIVERSITY, SIDES, Label, in_order, metric
from .run_files import RunFiles


def result(runs: Sequence[RunFiles]) -> Iterator[str]:
    """The section, as pieces of HTML."""
    if len(runs) > 1:
        yield from _several(runs)
        return
    evaluation = runs[0].evaluation
    if evaluation is None:
        yield box(
            "warn", "Not evaluated", ["What there is stands below; vizer-rl evaluate measures."]
        )
        return
    kind = "images" if runs[0].on_others else "held-out images"
    yield from headline(evaluation, f"{evaluation.n_images} {kind}")
    yield _before_after(evaluation)
    for note in evaluation.references.notes if evaluation.references else ():
        yield f"<p>{text(note)}</p>"
    yield from _controls(evaluation)
    yield from _details(evaluation)


def _before_after(evaluation: Evaluation) -> str:
    rows = []
    for name in in_order([*evaluation.change]):
        base, trained = (side.get(name) for side in (evaluation.base, evaluation.trained))
        label, change = metric(name), evaluation.change[name]
        rows.append([_name(label), _mean(base), _mean(trained), *_change(change, label)])
    return table(["", "before", "trained", "", "change"], rows, kind="result")


def _name(label: Label) -> str:
    return f"{text(label.title)}<small>{text(label.about)}</small>"


def _mean(value: Estimate | None) -> str:
    if value is None:
        return "–"
    span = f"{number(value['low'])} to {number(value['high'])}"
    return f"{number(value['value'])}<small>{span}</small>"


def _change(change: Estimate, label: Label) -> tuple[str, str]:
    """Two cells: an interval as a strip around 0; its numbers, and what it is in a word."""
    level = level_of(change, label.better)
    word = {"pass": "better", "fail": "worse", "warn": "not shown" if label.better else ""}[level]
    if label.better == 0 and not change["low"] <= 0 <= change["high"]:
        word = "more" if change["value"] > 0 else "less"
    colour = level if label.better and level != "warn" else "plain"
    value, low, high = (number(change[key], True) for key in ("value", "low", "high"))
    text_cell = f'<span class="{colour}">{value} <b>{word}</b></span><small>{low} to {high}</small>'
    return _strip(change, colour), text_cell


def _strip(change: Estimate, colour: str) -> str:
    """An interval as a bar of 120 units, 0 in its middle; the numbers stand beside it."""
    reach = max(abs(change["low"]), abs(change["high"]), abs(change["value"]), 1e-12)
    low, high, value = (60 + 54 * change[key] / reach for key in ("low", "high", "value"))
    return (
        f'<svg class="strip {colour}" viewBox="0 0 120 12" aria-hidden="true">'
        '<path class="zero" d="M60 0V12"/>'
        f'<path class="span" d="M{low:.1f} 6H{max(high, low + 0.5):.1f}"/>'
        f'<circle cx="{value:.1f}" cy="6" r="3"/></svg>'
    )


def _controls(evaluation: Evaluation) -> Iterator[str]:
    if not evaluation.controls:
        return
    names = in_order([*evaluation.trained])
    sides = {"before": evaluation.base, **evaluation.controls, "trained": evaluation.trained}
    rows = []
    for side, values in sides.items():
        title = f"{text(SIDES.get(side, side.replace('_', ' ')))}"
        title += f"<small>{text(evaluation.how.get(side, ''))}</small>"
        rows.append([title, *(_mean(values.get(name)) for name in names)])
    yield "<h3>Against the controls</h3>"
    yield "<p>What a trained model has to beat: what the model before training can do as well.</p>"
    yield table(["", *(text(metric(n).title) for n in names)], rows, kind="controls")
    tests = evaluation.verdict.tests if evaluation.verdict else []
    if tests:
        rows = []
        for test in tests:
            control = SIDES.get(test.control, test.control.replace("_", " "))
            label = metric(test.metric)
            title = f"{text(label.title)}, trained − {text(control)}"
            rows.append([title, *_change(test.difference, label), f"{test.p_holm:.3f}"])
        yield table(["paired, image by image", "", "difference", "p, Holm"], rows, kind="result")


def _details(evaluation: Evaluation) -> Iterator[str]:
    for title, sides in (
        ("Share of the facts stated, by kind", evaluation.by_kind),
        ("All captions together", evaluation.diversity),
    ):
        names = list(dict.fromkeys(name for values in sides.values() for name in values))
        if names:
            head = ["", *(text(DIVERSITY.get(n, n.replace("_", " "))) for n in names)]
            rows = (
                [
                    text(SIDES.get(side, side.replace("_", " "))),
                    *(_plain(values.get(name)) for name in names),
                ]
                for side, values in sides.items()
            )
            yield f"<h3>{title}</h3>"
            yield table(head, rows)


def _plain(value: float | None) -> str:
    """A share, or a count."""
    return f"{value:.0f}" if value and value > 1 else number(value)


def _several(runs: Sequence[RunFiles]) -> Iterator[str]:
    """All runs beside each other; then each against the first, image by image."""
    first, *others = runs
    differences = [_paired(first, other) for other in others]
    yield from _several_verdict(first, others, differences)
    evaluated = [(run.name, run.evaluation) for run in runs if run.evaluation]
    names = in_order(list(dict.fromkeys(n for _, e in evaluated for n in e.change)))
    rows = []
    for name in names:
        label, cells = metric(name), list[str]()
        for _, evaluation in evaluated:
            change = evaluation.change.get(name)
            cells += [
                _mean(evaluation.trained.get(name)),
                _change(change, label)[1] if change else "–",
            ]
        rows.append([_name(label), *cells])
    head = [cell for name, _ in evaluated for cell in (text(name), "over before")]
    if rows:
        yield table(["", *head], rows, kind="result")
    for other, (images, columns) in zip(others, differences, strict=True):
        if columns:
            title = f"{other.name} − {first.name}, paired on {images} images"
            rows = [
                [_name(metric(n)), *_change(columns[n], metric(n))] for n in in_order([*columns])
            ]
            yield table([text(title), "", "difference"], rows, kind="result")


def _several_verdict(
    first: RunFiles,
    others: Sequence[RunFiles],
    differences: Sequence[tuple[int, Mapping[str, Estimate]]],
) -> Iterator[str]:
    for other, (images, columns) in zip(others, differences, strict=True):
        score = columns.get("heldout_score")
        if score is None:
            sentence = f"No held-out score of both on the {images} images that they share."
            yield box("warn", f"{other.name} cannot be compared with {first.name}", [sentence])
            continue
        level = level_of(score, 1)
        says = {"pass": "is better than", "fail": "is worse than", "warn": "is not told apart from"}
        sentence = f"{interval(score)} in held-out score, paired on {images} images."
        yield box(level, f"{other.name} {says[level]} {first.name}", [sentence])


def _paired(first: RunFiles, other: RunFiles) -> tuple[int, dict[str, Estimate]]:
    """How many images both captioned, and other − first of each number both have per caption."""
    rows, more = ({row.image_id: row for row in run.captions} for run in (first, other))
    both = [image_id for image_id in rows if image_id in more and first.images == other.images]
    columns = [[_numbers(side[image_id]) for image_id in both] for side in (rows, more)]
    names = dict.fromkeys(name for column in columns for values in column for name in values)
    differences = {}
    for name in names:
        values = [np.array([v.get(name, np.nan) for v in column]) for column in columns]
        if difference := estimate(values[1] - values[0]):
            differences[name] = difference
    return len(both), differences


def _numbers(row: CaptionRow) -> dict[str, float]:
    """Per-caption numbers of a trained caption, named as in eval.json."""
    scores = {name: trained for name, (_, trained) in row.scores().items()}
    named = {f"heldout_{n}" if n.split(":")[0] == "score" else n: v for n, v in scores.items()}
    return {"mean_length": float(len(row.trained.split())), **named}
