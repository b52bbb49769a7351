"""What learns, as a table before the first step: weights of each part, how, and at what rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ..algorithms.whole_parts import WHOLE_RATE
from ..policy.families import Family
from ..policy.shared_prefix.kept import result_to_keep
from ..policy.shared_prefix.packing import unwrapped
from ..policy.trained_parts import count_parts

EACH_PASS = {  # by what the vision cache keeps
    "states": "The connector learns: every pass runs it on the tower's output, which is cached.",
    "pixels": "Image features change with what learns: every pass goes through the vision tower.",
}


def print_parts(
    console: Console, model: Any, family: Family, train: Mapping[str, str], rate: float
) -> None:
    """Print what learns of a PeftModel; train: policy.train; rate: train.learning_rate."""
    table = Table("part", "policy.train", box=None, pad_edge=False, header_style="bold")
    for column in ("parameters", "that learn", "rate"):
        table.add_column(column, justify="right")
    counts = count_parts(model, family)
    for c in counts:
        learns = c.lora + c.whole
        rates = rate * (WHOLE_RATE if c.whole else 1)
        cells = f"{c.weights:,}", f"{learns:,}", f"{rates:.1e}" if learns else "-"
        table.add_row(c.part, train[c.part], *cells)
    console.print(table)
    if whole := sum(c.whole for c in counts):
        console.print(
            f"full: {whole:,} parameters learn as float32 copies ({4 * whole / 1e6:,.1f} MB, Adam "
            "twice that); the frozen start stays beside them, for KL, rewards and base captions",
            soft_wrap=True,
        )
    if sentence := EACH_PASS.get(result_to_keep(unwrapped(model), family)):
        console.print(sentence, soft_wrap=True)
