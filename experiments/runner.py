"""Resumable table runner: runs/ holds what is done, the real command makes what is missing.

A run counts as done where its directory holds a marker file, which its last stage writes.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

FAMILIES = ("smolvlm", "qwen2vl")
LAST_ADAPTER = ("monitor.audit=false", "monitor.interval=0", "monitor.keep=last")
METRICS = {  # of eval.json to their columns
    "fact_f1": "F1",
    "fact_precision": "precision",
    "fact_recall": "recall",
    "hallucination_rate": "hallucinated",
    "mean_length": "words",
    "heldout_score": "held-out",
}


def slug(title: str) -> str:
    """A row's title as part of a run's name: `best-of-8`."""
    return title.split(" (")[0].lower().replace(" ", "-").replace("_", "-")


def directory(*parts: str | int) -> Path:
    """The run directory of these parts: table, family, row, seed."""
    return Path("runs") / "-".join(map(str, parts))


def arguments(family: str, folder: Path, seed: int, overrides: Iterable[str]) -> list[str]:
    """Run file and overrides of a run on scenes that is named after its directory."""
    file = str(Path(__file__).parent / f"{family}.yaml")
    words = ["profile=scenes", f"name={folder.name}", f"seed={seed}", "tracking.wandb=off"]
    return [file, *words, *overrides]


def command(*words: str) -> None:
    """`vizer-rl` with these words, in a process of its own; raises where it fails."""
    subprocess.run([sys.executable, "-m", "vizer_rl", *words], check=True)


def finished(folders: Iterable[Path], *markers: str) -> list[Path]:
    """The run directories that hold all the marker files."""
    return [folder for folder in folders if all((folder / name).exists() for name in markers)]


def train(family: str, folder: Path, seed: int, overrides: Iterable[str]) -> None:
    """Train and evaluate, unless eval.json is there."""
    if not finished([folder], "eval.json"):
        command("train", *arguments(family, folder, seed, overrides), "--overwrite")


def audit(family: str, folder: Path, seed: int, overrides: Iterable[str]) -> None:
    """Audit the base of a run, unless audit.json is there."""
    if not finished([folder], "audit.json"):
        command("audit", *arguments(family, folder, seed, overrides))


def read(folder: Path, name: str) -> Any:
    """A JSON file of a run; of a .jsonl file the list of its lines."""
    text = (folder / name).read_text()
    return [*map(json.loads, text.splitlines())] if name.endswith(".jsonl") else json.loads(text)


def interval(estimates: list[dict[str, float]], digits: int = 3, sign: str = "") -> str:
    """Mean of the seeds' values, then the widest 95 % interval of any seed: `0.5 [0.4, 0.6]`."""
    ends = min(e["low"] for e in estimates), max(e["high"] for e in estimates)
    value, low, high = (
        f"{x:{sign}.{digits}f}" for x in (mean(e["value"] for e in estimates), *ends)
    )
    return f"{value} [{low}, {high}]"


def metric_cells(seeds: list[dict[str, Any]], sign: str = "") -> list[str]:
    """A cell for each of METRICS, of one part of eval.json of each seed."""
    digits = {"mean_length": 1}
    return [interval([seed[m] for seed in seeds], digits.get(m, 3), sign) for m in METRICS]


def markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    """The Markdown table of these cells."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines)


def parser(
    doc: str | None, rows: Iterable[str], seeds: Sequence[int] = (), family: str | None = None
) -> argparse.ArgumentParser:
    """The flags of all tables: `--only` of some rows, `--table`; where there are seeds, `--seeds`.

    family: the default of `--family`, which is not there where it is None; "all": each in turn.
    """
    flags = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    flags.add_argument("--only", nargs="+", choices=[*rows], metavar="NAME", help="these alone")
    flags.add_argument("--table", action="store_true", help="only print what is there")
    if seeds:
        flags.add_argument("--seeds", type=int, nargs="+", default=[*seeds])
    if family == "all":
        flags.add_argument("--family", choices=FAMILIES, help="one of them")
    elif family:
        flags.add_argument("--family", choices=FAMILIES, default=family)
    return flags
