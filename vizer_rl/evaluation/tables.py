"""Console and tables of an evaluation: each metric of base, trained and change with its interval.

Captions, file names and models' names are data: the console takes no markup from them and shows
their control characters as escapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import printable
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
}


class PlainConsole(Console):
    """A console that prints text as it is: "[red]" and ":star:" are text, and so is an escape."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's, of every string that is printed, cells of tables included."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)


def print_evaluation(
    console: Console, result: Mapping[str, Any], rows: Sequence[Mapping[str, str]]
) -> None:
    """Print the tables of eval.json and the first changed rows of captions.jsonl, in 80 columns."""
    console.print(
        f"\nBefore and after, on {result['n_images']} held-out images "
        f"(mean, 95 % bootstrap interval):"
    )
    table = make_table("", "base", "trained", "change")
    for name in result["base"]:
        cells = (_interval(result[side][name], name, side) for side in SIDES)
        table.add_row(LABELS[name], *cells)
    console.print(table)
    if "by_kind" in result:
        words = result["truth_mean_length"]
        console.print(f"\nTrue captions have {words:.1f} words. Share of the facts told, by kind:")
        table = make_table("", *KINDS)
        for side, recall in result["by_kind"].items():
            cells = ("none" if r is None else _number(r, "") for r in recall.values())
            table.add_row(side, *cells)
        console.print(table)
    changed = [row for row in rows if row["base"] != row["trained"]][:EXAMPLES]
    if not changed:
        console.print("\nTraining changed no caption.")
        return
    console.print(f"\nThe first {len(changed)} held-out images whose caption changed, none picked:")
    grid = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(2):
        grid.add_column(overflow="fold")  # no caption is cut, however long its words are
    for row in changed:
        grid.add_row("image", row["image_id"])
        grid.add_row("  before", row["base"])
        grid.add_row("  after", row["trained"])
        if "truth" in row:
            grid.add_row("  truth", row["truth"])
    console.print(grid)


def make_table(*columns: str) -> Table:
    """An empty table with these column heads, ruled below them only."""
    # Gaps of 2, for the widest row is 14 + 3 x 20 characters: "-.123 [-.145, -.101]".
    gap = (0, 1, 0, 0)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=gap)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _interval(estimate: Estimate, metric: str, side: str) -> str:
    value, low, high = (_number(estimate[key], metric, side) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _number(value: float, metric: str, side: str = "") -> str:
    """At most four characters and the sign of a change: ".477", "1.00", "+9.3", "102"."""
    if metric == "mean_length":
        places = 1 if abs(value) < 99.95 else 0
    else:
        places = 3 if abs(value) < 0.9995 else 2
    sign = "+" if side == "change" else ""
    return re.sub(r"\b0\.", ".", f"{round(value, places) + 0.0:{sign}.{places}f}")
