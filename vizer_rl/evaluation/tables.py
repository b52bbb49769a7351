"""Console and tables of an evaluation: each metric of base, trained and change with its interval.

Captions, file names and models' names are data: the console takes no markup from them and shows
their control characters as escapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import printable
from .before_after import further_scorer
from .doubtful_words import LEGEND, marked
from .metrics.scene_facts.facts import KINDS
from .statistics import Estimate

EXAMPLES = 4
SIDES = ("base", "trained", "change")
LABELS = {
    "fact_f1": "fact F1",
    "fact_precision": "fact precision",
    "fact_recall": "fact recall",
    "hallucination_rate": "hallucinated",
    "mean_length": "words",
    "heldout_score": "held-out score",
    "retrieval_1": "retrieval @1",
    "retrieval_5": "retrieval @5",
    "repetition": "repetition",
    "visual_dependence": "nats by image",
    "doubtful_rate": "doubtful",
    "doubtful_words": "doubtful words",
    **{f"bleu_{n}": f"BLEU-{n}" for n in range(1, 5)},
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D",
    "meteor": "METEOR",
    "spice": "SPICE",
    "clip_score": "CLIPScore",
    "ref_clip_score": "RefCLIPScore",
    "chair_i": "CHAIR-i",
    "chair_s": "CHAIR-s",
    "object_recall": "object recall",
    **{f"recall_{k}": f"R@{k} of all" for k in (1, 5, 10)},
    "bert_score": "BERTScore",
}
ROWS = {
    "base": "base",
    "best_prompt": "best prompt",
    "length_matched": "base, as long",
    "best_of_8": "best of 8",
    "trained": "trained",
}
SET_LABELS = {
    "distinct_2": "distinct pairs",
    "vocabulary": "vocabulary",
    "unique_captions": "unique",
}
CONTROL_COLUMNS = {  # the narrow names of the metrics in the table of controls
    "mean_length": "words",
    "heldout_score": "held-out",
    "retrieval_1": "R@1",
    "doubtful_rate": "doubtful",
    "doubtful_words": "doubtful\nwords",
    "fact_f1": "fact F1",
    "hallucination_rate": "halluc.",
    "cider_d": "CIDEr-D",
    "chair_s": "CHAIR-s",
}


def title(metric: str) -> str:
    """What a metric is called in a sentence."""
    scorer = further_scorer(metric)
    return f"held-out score by {scorer_title(scorer)}" if scorer else LABELS[metric]


def scorer_title(scorer: str) -> str:
    """The name of a scorer, of a folder without the way to it."""
    kind, _, path = scorer.partition(":")
    return f"{kind}:{PurePath(path).name}" if kind == "local-dir" else scorer


def row_titles(metrics: Iterable[str]) -> dict[str, str]:
    """What metrics are called in a table: further held-out scorers, with long names, by number."""
    metrics = list(metrics)
    further = [metric for metric in metrics if further_scorer(metric)]
    numbered = {metric: f"held-out {number}" for number, metric in enumerate(further, 2)}
    return {metric: numbered.get(metric) or LABELS[metric] for metric in metrics}


def print_scorers(console: Console, titles: Mapping[str, str]) -> None:
    """Print the names of the held-out scorers that a table has by number."""
    for metric, text in titles.items():
        if scorer := further_scorer(metric):
            console.print(f"{text}: held-out score by {scorer}.", soft_wrap=True)


class PlainConsole(Console):
    """A console that prints text as it is: "[red]" and ":star:" are text, and so is an escape."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's, of every string that is printed, cells of tables included."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)


def print_evaluation(
    console: Console,
    result: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    kind: str = "held-out images",
) -> None:
    """Print the tables of eval.json and the first changed rows of captions.jsonl, in 80 columns."""
    console.print(
        f"\nBefore and after, on {result['n_images']} {kind} (mean, 95 % bootstrap interval):"
    )
    table = make_table("", "base", "trained", "change")
    titles = row_titles(result["base"])
    for name, text in titles.items():
        cells = (interval_text(result[side][name], name, side) for side in SIDES)
        table.add_row(text, *cells)
    console.print(table)
    print_scorers(console, titles)
    if "by_kind" in result:
        words = result["truth_mean_length"]
        console.print(f"\nTrue captions have {words:.1f} words. Share of the facts told, by kind:")
        table = make_table("", *KINDS)
        for side, recall in result["by_kind"].items():
            cells = ("none" if r is None else number_text(r, "") for r in recall.values())
            table.add_row(side, *cells)
        console.print(table)
    if "diversity" in result:
        console.print("\nOf all captions together:")
        table = make_table("", *SET_LABELS.values())
        for row, values in result["diversity"].items():
            cells = (number_text(values[name], name) for name in SET_LABELS)
            table.add_row(ROWS.get(row, row), *cells)
        console.print(table)
    for sentence in [*result.get("references", {}).get("notes", ()), *result.get("left_out", ())]:
        console.print(sentence, soft_wrap=True)
    _print_changed(console, rows, kind)


def _print_changed(console: Console, rows: Sequence[Mapping[str, Any]], kind: str) -> None:
    """The first rows whose caption changed, their doubtful words marked."""
    changed = [row for row in rows if row["base"] != row["trained"]][:EXAMPLES]
    if not changed:
        console.print("\nTraining changed no caption.")
        return
    console.print(f"\nThe first {len(changed)} {kind} whose caption changed, none picked:")
    grid = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(2):
        grid.add_column(overflow="fold")  # no caption is cut, however long its words are
    for row in changed:
        grid.add_row("image", row["image_id"])
        grid.add_row("  before", marked(row["base"], row.get("base_doubtful", ())))
        grid.add_row("  after", marked(row["trained"], row.get("trained_doubtful", ())))
        if "truth" in row:
            grid.add_row("  truth", row["truth"])
    console.print(grid)
    if any(row.get(f"{side}_doubtful") for row in changed for side in ("base", "trained")):
        console.print(LEGEND)


def print_controls(console: Console, result: Mapping[str, Any]) -> None:
    """Print the rows that training has to beat, how they came about, and the verdict."""
    sides = {"base": result["base"], **result["controls"], "trained": result["trained"]}
    metrics = [metric for metric in CONTROL_COLUMNS if metric in result["base"]]
    console.print("\nBeside captions that need no training (means):")
    table = make_table("", *(CONTROL_COLUMNS[metric] for metric in metrics))
    for row in sides:
        cells = (number_text(sides[row][metric]["value"], metric) for metric in metrics)
        table.add_row(ROWS[row], *cells)
    console.print(table)
    for row, sentence in result["how"].items():
        console.print(f"{ROWS[row]}: {sentence}")
    _print_further(console, result, sides)
    if "verdict" in result:
        console.print("\nVerdict:")
        for sentence in result["verdict"]["sentences"]:
            console.print(f"- {sentence}")


def _print_further(
    console: Console, result: Mapping[str, Any], sides: Mapping[str, Mapping[str, Estimate]]
) -> None:
    """Print what further held-out scorers say of each row, and of the trained one over it."""
    titles = {m: text for m, text in row_titles(result["base"]).items() if further_scorer(m)}
    if not titles:
        return
    over = {"base": result["change"]} | result["over_controls"]
    console.print("\nBy further held-out scorers (mean, 95 % bootstrap interval):")
    table = make_table("", "row", "mean", "trained − row")
    for metric, text in titles.items():
        for k, row in enumerate(sides):
            mean = interval_text(sides[row][metric], metric)
            change = interval_text(over[row][metric], metric, "change") if row in over else ""
            table.add_row("" if k else text, ROWS[row], mean, change)
    console.print(table)


def make_table(*columns: str) -> Table:
    """An empty table with these column heads, ruled below them only."""
    # Gaps of 2, for the widest row is 14 + 3 x 20 characters: "-.123 [-.145, -.101]".
    gap = (0, 1, 0, 0)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=gap)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def interval_text(estimate: Estimate, metric: str, side: str = "") -> str:
    """Mean and interval of a metric: ".477 [.450, .504]"; of a "change" with signs."""
    value, low, high = (
        number_text(estimate[key], metric, side) for key in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


def number_text(value: float, metric: str, side: str = "") -> str:
    """At most four characters and the sign of a change: ".477", "1.00", "+9.3", "102"."""
    if metric == "vocabulary":
        places = 0
    elif metric == "mean_length":
        places = 1 if abs(value) < 99.95 else 0
    else:
        places = 3 if abs(value) < 0.9995 else 2
    sign = "+" if side == "change" else ""
    return re.sub(r"\b0\.", ".", f"{round(value, places) + 0.0:{sign}.{places}f}")
