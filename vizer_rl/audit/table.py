"""An audit in the terminal: the verdict, then the tables, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .verdict import CHANCE, SOUND

STYLE = {"pass": "green", "warn": "yellow", "fail": "red"}
SAYS = {
    "pass": "nothing speaks against training with these rewards",
    "warn": "may be trained with; know the risks",
    "fail": "training with this will not make the captions truer",
}
SHOWN = 6  # rewards with a column of their own


def show(console: Console, numbers: Mapping[str, Any]) -> None:
    """Print the whole audit."""
    console.print(_title(numbers))
    _lines(console, numbers, {"pass", "warn", "fail"})
    if "attacks" in numbers:
        console.print("\nHow often the original beats the attacked caption (95 % interval):")
        console.print(_attacks(numbers))
        console.print("\nWhat the rewards go by (within an image's captions):")
        console.print(_controls(numbers))
    _headroom(console, numbers)


def show_short(console: Console, numbers: Mapping[str, Any], most: int = 4) -> None:
    """Print the verdict and the gravest findings, for the start of training."""
    console.print(_title(numbers))
    _lines(console, numbers, {"pass", "warn", "fail"}, most)


def _title(numbers: Mapping[str, Any]) -> Text:
    overall = numbers["verdict"]["overall"]
    text = Text("audit: ")
    text.append(overall, style=f"bold {STYLE[overall]}")
    text.append(f", {SAYS[overall]} ({numbers['images']} images, {numbers['seconds']:.0f} s)")
    return text


def _lines(
    console: Console, numbers: Mapping[str, Any], levels: set[str], most: int | None = None
) -> None:
    lines = [line for line in numbers["verdict"]["lines"] if line["level"] in levels]
    for line in lines[:most]:
        text = Text("  ")
        text.append(line["level"], style=STYLE[line["level"]])
        text.append(f" {line['says']}")
        if line["do"]:
            text.append(f" {line['do']}", style="bold")
        console.print(text, soft_wrap=not console.is_terminal)


def _columns(numbers: Mapping[str, Any]) -> list[str]:
    """The rewards shown: those that count first, in the order of the run file."""
    rewards = numbers["rewards"]
    return sorted(rewards, key=lambda name: not rewards[name])[:SHOWN]


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        justify: Any = "right" if number else "left"
        table.add_column(column.replace("_", " "), justify=justify, vertical="bottom")
    return table


def _rate(estimate: Mapping[str, float] | None, interval: bool = False) -> Text:
    """A share; red where it is below chance, yellow where it is not sound."""
    if estimate is None:
        return Text("–", style="dim")
    value = estimate["value"]
    style = "" if value >= SOUND else "yellow" if value >= CHANCE else "red"
    told = f"{value:.2f}"
    if interval:
        told += f" [{estimate['low']:.2f}, {estimate['high']:.2f}]"
    return Text(told, style=style)


def _attacks(numbers: Mapping[str, Any]) -> Table:
    shown = _columns(numbers)
    table = _table("attack", "pairs", "weighted sum", *shown)
    for name, told in numbers["attacks"].items():
        won = told["wins"]
        cells = [_rate(won[reward]) for reward in shown]
        table.add_row(name, str(told["pairs"]), _rate(won["sum"], True), *cells)
    return table


def _plain(value: Mapping[str, float] | float | None) -> str:
    if value is None:
        return "–"
    number = value if isinstance(value, float) else value["value"]  # type: ignore[index]
    return f"{number:.2f}"


def _controls(numbers: Mapping[str, Any]) -> Table:
    shown = ["sum", *_columns(numbers)]
    table = _table("", *("weighted sum" if name == "sum" else name for name in shown))
    for title, values, _ in controls(numbers):
        table.add_row(title, *(_plain(values.get(name)) for name in shown))
    return table


def controls(numbers: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], bool]]:
    """What each reward goes by: a title, the values by reward, whether they are win rates."""
    order, looks, truth = numbers["order"], numbers["controls"], numbers.get("truth")
    rows: list[tuple[str, Mapping[str, Any], bool]] = [
        ("right image beats another", looks["other"], True),
        ("right image beats blank", looks.get("blank", {}), True),
        ("agrees with held-out scorer", order["heldout"], False),
        ("goes with length", order["length"], False),
        ("share of images left tied", order["tied"], False),
        ("moved by mild changes", numbers.get("noise", {}), False),
        ("agrees with the truth", truth["within"] if truth else {}, False),
        ("ms per caption", numbers["milliseconds"], False),
    ]
    return [row for row in rows if row[1]]


def _headroom(console: Console, numbers: Mapping[str, Any]) -> None:
    headroom = numbers["headroom"]
    bests = "  ".join(f"{n}: {_plain(value)}" for n, value in headroom["best_of"].items())
    console.print(
        f"\nHeld-out score of the caption the base gives now: {_plain(headroom['greedy'])}"
    )
    console.print(f"  of the sum's pick among n samples: {bests}")
    truth = numbers.get("truth")
    if truth:
        console.print(
            f"True F1, which no reward and no verdict has seen: now {_plain(truth['f1_greedy'])}, "
            f"picked {_plain(truth['f1_picked'])}, best there is {_plain(truth['f1_best'])}"
        )
