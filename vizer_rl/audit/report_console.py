"""The terminal report of an audit: the verdict, then the tables, at most 100 columns wide."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import printable
from .thresholds import CHANCE, MIN_WIN_RATE, SHOWN_TIES

STYLE = {"pass": "green", "warn": "yellow", "fail": "red"}
SUMMARY = {
    "pass": "nothing speaks against training with these rewards",
    "warn": "may be trained with; know the risks",
    "fail": "training with this will not make the captions truer",
}
Row = tuple[str, Mapping[str, Any], bool]  # title, values by reward, whether they are shares
LABEL_WIDTH, REWARD_WIDTH = 48, 11  # columns of the terminal: first cells of a row, each reward


def show(console: Console, result: Mapping[str, Any]) -> None:
    """Print the whole audit."""
    console.print(_title(result))
    console.print(_lines(result))
    if "attacks" in result:
        console.print(
            "\nHow often the original beats the attacked caption (95 % interval), and, behind a =, "
            "ties:"
        )
        console.print(_attacks(result, console.width))
        console.print("\nAll attacks, with the image, with another one, and by length alone:")
        console.print(_rows(result, console.width, together_rows(result)))
        console.print("\nWhat the rewards go by (within an image's captions):")
        console.print(_rows(result, console.width, control_rows(result)))
    more = len(result["rewards"]) - len(_columns(result, console.width))
    if more:
        console.print(f"({more} more rewards: see the page)")
    _headroom(console, result)


def show_short(console: Console, result: Mapping[str, Any], max_lines: int = 3) -> None:
    """Print the verdict and the gravest findings, for the start of training."""
    console.print(_title(result))
    console.print(_lines(result, max_lines))


def _title(result: Mapping[str, Any]) -> Text:
    overall = result["verdict"]["overall"]
    text = Text("audit: ")
    text.append(overall, style=f"bold {STYLE[overall]}")
    text.append(f", {SUMMARY[overall]} ({result['images']} images, {result['seconds']:.0f} s)")
    return text


def _lines(result: Mapping[str, Any], max_lines: int | None = None) -> Table:
    grid = Table.grid(padding=(0, 1))
    for line in result["verdict"]["lines"][:max_lines]:
        says = Text(printable(line["says"]))
        says.append(f" {printable(line['do'])}" if line["do"] else "", style="bold")
        grid.add_row(Text(f"  {line['level']}", style=STYLE[line["level"]]), says)
    return grid


def _columns(result: Mapping[str, Any], width: int) -> list[str]:
    """The rewards that fit: those with a weight first, in the order of the run file."""
    rewards, count = result["rewards"], max(1, (width - LABEL_WIDTH) // REWARD_WIDTH)
    return sorted(rewards, key=lambda name: not rewards[name])[:count]


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        justify: Any = "right" if number else "left"
        header = column.replace("_", "\n").replace(" ", "\n")
        table.add_column(header, justify=justify, vertical="bottom", no_wrap=True)
    return table


def _short(value: float) -> str:
    return re.sub(r"\b0\.", ".", f"{value:.2f}")


def _rate(
    estimate: Mapping[str, Any] | None, interval: bool = False, chance: float = CHANCE
) -> Text:
    """A share; red below chance, yellow below MIN_WIN_RATE; behind it the ties."""
    if estimate is None:
        return Text("–", style="dim")
    value = estimate["value"]
    style = "" if value >= MIN_WIN_RATE else "yellow" if value >= chance else "red"
    text = Text(_short(value), style=style)
    if interval:
        text.append(f" [{_short(estimate['low'])}, {_short(estimate['high'])}]")
    return text.append(_ties(estimate), style="dim")


def _ties(estimate: Mapping[str, Any]) -> str:
    tied = estimate.get("tied", 0.0)
    return f" ={_short(tied)}" if tied > SHOWN_TIES else ""


def _attacks(result: Mapping[str, Any], width: int) -> Table:
    shown = _columns(result, width)
    table = _table("attack", "pairs", "weighted sum", *shown)
    for name, attack in result["attacks"].items():
        won = attack["wins"]
        chance = attack["chance"]
        cells = [_rate(won[reward], chance=chance) for reward in shown]
        table.add_row(name, str(attack["pairs"]), _rate(won["sum"], True, chance), *cells)
    return table


def _plain(value: Mapping[str, Any] | float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, int | float):
        return _short(value)
    return _short(value["value"]) + _ties(value)


def _rows(result: Mapping[str, Any], width: int, rows: Iterable[Row]) -> Table:
    shown = ["sum", *_columns(result, width)]
    table = _table("", *("weighted sum" if name == "sum" else name for name in shown))
    for title, values, _ in rows:
        table.add_row(title, *(_plain(values.get(name)) for name in shown))
    return table


def together_rows(result: Mapping[str, Any]) -> list[Row]:
    """Rows on all attacks: the original against one attacked caption or three; without image."""
    return [(title, values, True) for title, values in result["together"].items()]


def control_rows(result: Mapping[str, Any]) -> list[Row]:
    """Rows on what the rewards go by."""
    order, images, truth = result["order"], result["controls"], result.get("truth")
    rows: list[Row] = [
        ("right image beats another", images["other"], True),
        ("right image beats blank", images.get("blank", {}), True),
        ("agrees with held-out scorer", order["heldout"], False),
        ("goes with length", order["length"], False),
        ("share of images left tied", order["tied"], False),
        ("moved by mild changes", result.get("noise", {}), False),
        ("agrees with the truth", truth["within"] if truth else {}, False),
        ("ms per caption", result["milliseconds"], False),
    ]
    return [row for row in rows if row[1]]


def _headroom(console: Console, result: Mapping[str, Any]) -> None:
    headroom = result["headroom"]
    bests = "  ".join(f"{n}: {_plain(value)}" for n, value in headroom["best_of"].items())
    console.print(
        f"\nHeld-out score of the caption the base gives now: {_plain(headroom['greedy'])}"
    )
    console.print(f"  of the sum's pick among n samples: {bests}")
    if doubtful := headroom.get("doubtful"):
        console.print(
            f"Doubtful words, of which the dial asks for fewer: now {_plain(doubtful['greedy'])}, "
            f"picked {_plain(doubtful['picked'])}"
        )
    truth = result.get("truth")
    if truth:
        console.print(
            f"True F1, which no reward and no verdict has seen: now {_plain(truth['f1_greedy'])}, "
            f"picked {_plain(truth['f1_picked'])}, best there is {_plain(truth['f1_best'])}"
        )


def show_passport(console: Console, result: Mapping[str, Any]) -> None:
    """Print a scorer's passport: a row per attack, the blind judges and the published beside it."""
    models = [*next(iter(result["rows"].values()))["published"]]
    console.print(f"\n{result['scorer']} on {result['images']} images, {result['source']}.")
    console.print("How often the original scores higher than the worse caption (95 % interval):")
    table = _table("attack", "pairs", "right", "tied", "words", "text", *models)
    for name, row in result["rows"].items():
        judges = [Text(_plain(row[judge]), style="dim") for judge in ("tied", "words", "text")]
        quoted = [Text(_plain(row["published"][model]), style="dim") for model in models]
        table.add_row(name, str(row["pairs"]), _rate(row["right"], True), *judges, *quoted)
    console.print(table)
    for sentence in passport_sentences(result):
        console.print(sentence)


def passport_sentences(result: Mapping[str, Any]) -> list[str]:
    """What the columns are, then what the scorer fails at."""
    sentences = [
        "tied: neither. words: what the number of words alone gets right. text: what the policy "
        "gets right that reads no image, by nats per token.",
        "Quoted, and of other images, captions and negatives: the last four columns, SugarCrepe "
        "(arXiv 2306.14610), of order of five ARO (arXiv 2210.01936).",
    ]
    if not result["certain"]:
        sentences.append(
            "A changed word counts where the policy prefers the original on this image."
        )
    rows = {name: row for name, row in result["rows"].items() if row["right"]}
    blind = [
        name
        for name, row in rows.items()
        if row["right"]["low"] <= max(row["words"] or 0.0, row["text"] or 0.0)
    ]
    fooled = [name for name, row in rows.items() if row["right"]["value"] < MIN_WIN_RATE]
    if fooled:
        sentences.append(f"Wrong or tied more than one time in ten: {', '.join(fooled)}.")
    if blind:
        sentences.append(f"Not clearly better than a judge without the image: {', '.join(blind)}.")
    if empty := [name for name, row in result["rows"].items() if not row["right"]]:
        sentences.append(f"Nothing to attack in these captions: {', '.join(empty)}.")
    return sentences
