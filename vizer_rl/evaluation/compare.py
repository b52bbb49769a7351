"""Comparison of runs: paired differences on the images that all of them were evaluated on.

Loads no model. Metrics with a number per image are computed anew from captions.jsonl: of scenes
from their truth, of images with references from these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rewards.repetition import Repetition

from .before_after import HELDOUT, Columns, columns_of, further_scorer, heldout_metric
from .evaluated_runs import EvaluatedRun, read_runs, shared_images
from .metrics.bleu import Bleu
from .metrics.cider import CiderD
from .metrics.ptb import tokenize
from .metrics.rouge_l import rouge_l
from .metrics.scene_facts import read_truth
from .statistics import Column, difference, estimates, holm, p_value
from .tables import (
    PlainConsole,
    interval_text,
    make_table,
    number_text,
    print_scorers,
    row_titles,
    title,
)

HEADLINE = ("fact_f1", "hallucination_rate", "cider_d", "heldout_score", "doubtful_rate")
ORDER = ("fact_f1", "cider_d", "heldout_score", "mean_length")  # the first there is orders images
OF_SCORERS = "what the held-out scorers say, for they"  # differ
EXAMPLES = 4
BASE = "base"  # the row before training, where it is the same in all runs


def compare(directories: Sequence[Path]) -> None:
    """Print how runs differ from the first; UserError where they cannot be compared."""
    _print(PlainConsole(), comparison(directories))


def comparison(directories: Sequence[Path]) -> dict[str, Any]:
    """{"runs", "images", "sentences", "metrics": {metric: {row: cell}}, "by", "examples"}.

    A cell has the `mean`, the `difference` from the first run and, of headline metrics, its `p`,
    after Holm over all of them and all runs. Rows are the runs and, where it is theirs all, BASE.
    """
    runs = read_runs(directories)
    ids, sentences = shared_images(runs)
    columns = _columns(runs, ids)
    sentences += _same_metrics(columns, runs)
    by = next(metric for metric in ORDER if metric in columns[runs[0].name])
    return {
        "runs": [run.name for run in runs],
        "images": len(ids),
        "sentences": sentences,
        "metrics": _cells(columns, [run.name for run in runs]),
        "by": by,
        "examples": _examples(runs, ids, {run.name: columns[run.name][by] for run in runs}),
    }


def _same_metrics(columns: Mapping[str, Columns], runs: Sequence[EvaluatedRun]) -> list[str]:
    """Drop from all rows what one lacks, or has by another scorer; sentences on what is dropped."""
    scorers, sentences = {run.name: run.scorer for run in runs}, list[str]()
    by_scorer = {heldout_metric(scorer) for scorer in scorers.values()} | {"doubtful_rate"}
    differ = len({*scorers.values()}) > 1
    shared = {m for m in columns[runs[0].name] if all(m in own for own in columns.values())}
    if differ:
        shared.discard("doubtful_rate")
        common = any(further_scorer(metric) for metric in shared)
        what = "doubtful words, for the runs' held-out scorers" if common else OF_SCORERS
        names = ", ".join(f"{scorer} ({run})" for run, scorer in scorers.items())
        sentences.append(f"Not compared: {what} differ: {names}.")
    for metric in dict.fromkeys(m for own in columns.values() for m in own if m not in shared):
        lacking = ", ".join(run for run in scorers if metric not in columns[run])
        if not (differ and metric in by_scorer):
            sentences.append(f"Not compared: {title(metric)}, for there is none of {lacking}.")
        for own in columns.values():
            own.pop(metric, None)
    return sentences


def _columns(runs: Sequence[EvaluatedRun], ids: Sequence[str]) -> dict[str, Columns]:
    """The metrics of each row, scorers by their names where the runs' own differ."""
    truth = next((run.truth for run in runs if run.truth), None)
    truths = [*read_truth(truth, ids, "held-out").values()] if truth else None
    references = [next((r for run in runs if (r := run.lines[i].references)), []) for i in ids]
    sides = {run.name: (run, "trained") for run in runs}
    if len({tuple(run.lines[i].base for i in ids) for run in runs}) == 1:
        sides.setdefault(BASE, (runs[0], "base"))
    differ = len({run.scorer for run in runs}) > 1
    columns = dict[str, Columns]()
    for row, (run, side) in sides.items():
        captions: list[str] = [getattr(run.lines[i], side) for i in ids]
        cosines = {
            HELDOUT if scorer == run.scorer and not differ else heldout_metric(scorer): values
            for scorer, values in _cosines(run, ids, side).items()
        }
        columns[row] = {**columns_of(captions, cosines, truths)}
        columns[row]["repetition"] = np.array([Repetition().share(text) for text in captions])
        doubtful = [getattr(run.lines[i], f"{side}_doubtful") for i in ids]
        if None not in doubtful:
            columns[row]["doubtful_rate"] = np.array([float(bool(words)) for words in doubtful])
        if all(references):
            columns[row] |= _on_references(captions, references)
    return columns


def _cosines(run: EvaluatedRun, ids: Sequence[str], side: str) -> dict[str, list[float]]:
    """The held-out scores of a side by scorer, of those that judged all these images."""
    lines = [run.lines[image_id].cosines(side, run.scorer) for image_id in ids]
    scorers = (scorer for scorer in lines[0] if all(scorer in line for line in lines))
    return {scorer: [line[scorer] for line in lines] for scorer in scorers}


def _on_references(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Columns:
    """BLEU, ROUGE-L and CIDEr-D, the document frequencies being of these images alone."""
    tokens = [tokenize(caption) for caption in captions]
    theirs = [[tokenize(text) for text in texts] for texts in references]
    return {
        **Bleu(theirs)(tokens),
        "rouge_l": rouge_l(tokens, theirs),
        "cider_d": CiderD(theirs)(tokens),
    }


def _cells(columns: Mapping[str, Columns], runs: Sequence[str]) -> dict[str, Any]:
    first, *others = runs
    means = {row: estimates(own) for row, own in columns.items()}
    change = {
        row: {metric: difference(column, columns[first][metric]) for metric, column in own.items()}
        for row, own in columns.items()
        if row != first
    }
    intervals = {row: estimates(own) for row, own in change.items()}
    tests = [(row, metric) for row in others for metric in HEADLINE if metric in change[row]]
    p_values = holm([p_value(np.asarray(change[row][metric])) for row, metric in tests])
    adjusted = dict(zip(tests, p_values, strict=True))
    return {
        metric: {
            row: {
                "mean": means[row][metric],
                "difference": intervals[row][metric] if row != first else None,
                "p": adjusted.get((row, metric)),
            }
            for row in columns
        }
        for metric in columns[first]
    }


def _examples(
    runs: Sequence[EvaluatedRun], ids: Sequence[str], values: Mapping[str, Column]
) -> list[dict[str, Any]]:
    """The images on which the runs' values are furthest apart, with the captions of each."""
    values_KN = np.array([values[run.name] for run in runs])
    spread_N = np.ptp(values_KN, axis=0)
    examples = []
    for n in np.argsort(-spread_N, kind="stable")[:EXAMPLES]:
        if spread_N[n] == 0:
            break
        lines = [run.lines[ids[n]] for run in runs]
        truth = next((line.truth for line in lines if line.truth), None)
        references = next((line.references for line in lines if line.references), [])
        captions = {
            run.name: {"value": float(values_KN[k, n]), "caption": lines[k].trained}
            for k, run in enumerate(runs)
        }
        truths = [truth] if truth else references[:1]
        examples.append({"image_id": ids[n], "captions": captions, "truth": truths})
    return examples


def _print(console: Console, result: Mapping[str, Any]) -> None:
    """Print the table, 80 columns wide where the runs' names are short, and the images."""
    first, *others = result["runs"]
    for sentence in result["sentences"]:
        console.print(sentence, soft_wrap=True)
    console.print(f"\nOn the {result['images']} images that all were evaluated on (mean, 95 %")
    console.print(f"bootstrap interval); differences are from {first}, image by image:")
    table, titles = make_table("", "run", "mean", "difference", "p"), row_titles(result["metrics"])
    for metric, rows in result["metrics"].items():
        for row, cell in rows.items():
            change, p = cell["difference"], cell["p"]
            table.add_row(
                titles[metric] if row == first else "",
                row,
                interval_text(cell["mean"], metric),
                interval_text(change, metric, "change") if change else "",
                "" if p is None else f"{p:.3f}".lstrip("0"),
            )
    console.print(table)
    print_scorers(console, titles)
    tests = len(others) * sum(metric in HEADLINE for metric in result["metrics"])
    console.print(f"p: of the headline metrics, after Holm over these {tests} tests.")
    if not result["examples"]:
        console.print("\nThe runs do not differ on any image.")
        return
    console.print(f"\nThe images they differ most on, by {title(result['by'])}:")
    grid = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(3):
        grid.add_column(overflow="fold")
    for example in result["examples"]:
        grid.add_row("image", "", example["image_id"])
        for row, cell in example["captions"].items():
            grid.add_row(f"  {row}", number_text(cell["value"], result["by"]), cell["caption"])
        for text in example["truth"]:
            grid.add_row("  truth" if result["by"] == "fact_f1" else "  reference", "", text)
    console.print(grid)
