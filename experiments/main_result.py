"""The learning result: the default recipe and its honest counterparts, three seeds a family.

    .venv/bin/python experiments/main_result.py [--only smolvlm] [--seeds 3] [--table]

Runs what runs/ lacks (a finished run has an eval.json), one after the other, through the real
command, and prints the table for experiments/README.md. --table only prints it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

OTHERS = ("self_retrieval", "clip_similarity", "alignment", "repetition", "length")


def alone(name: str) -> list[str]:
    """Overrides that leave one reward."""
    return [f"rewards.{name}.weight=1", *(f"rewards.{o}=null" for o in OTHERS if o != name)]


RECIPES = {
    "default": [],
    "clip_similarity alone": alone("clip_similarity"),
    "random reward": alone("random"),
}
METRICS = {
    "fact_f1": "F1",
    "fact_precision": "precision",
    "fact_recall": "recall",
    "hallucination_rate": "hallucinated",
    "mean_length": "words",
    "heldout_score": "held-out",
}


def run(family: str, recipe: str, seed: int) -> Path:
    """Train and evaluate, unless that was done."""
    name = f"{family}-{recipe.split()[0]}-{seed}"
    directory = Path("runs") / name
    if not (directory / "eval.json").exists():
        file = f"experiments/{family}.yaml"
        settings = ["profile=scenes", f"name={name}", f"seed={seed}", "tracking.wandb=off"]
        words = ["-m", "vizer_rl", "train", file, *settings, *RECIPES[recipe], "--overwrite"]
        subprocess.run([sys.executable, *words], check=True)
    return directory


def cell(values: list[dict], digits: int) -> str:
    """Mean over seeds of the values, then the widest 95 % interval of any seed."""
    low, high = min(v["low"] for v in values), max(v["high"] for v in values)
    middle = mean(v["value"] for v in values)
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def row(title: str, values: list[dict]) -> str:
    """One line of the table."""
    digits = {"mean_length": 1}
    cells = [cell([v[m] for v in values], digits.get(m, 3)) for m in METRICS]
    return f"| {title} | " + " | ".join(cells) + " |"


def table(families: list[str], seeds: int) -> str:
    """The Markdown table of every run that is there."""
    lines = ["| family, recipe (seeds) | " + " | ".join(METRICS.values()) + " | minutes |"]
    lines += ["|---" * (len(METRICS) + 2) + "|"]
    for family in families:
        words = None
        for recipe in RECIPES:
            folders = [Path("runs") / f"{family}-{recipe.split()[0]}-{s}" for s in range(seeds)]
            folders = [f for f in folders if (f / "eval.json").exists()]
            told = [json.loads((f / "eval.json").read_text()) for f in folders]
            if not told:
                continue
            if words is None:
                words = told[0]["truth_mean_length"]
                lines.append(
                    row(f"{family}, base (true captions: {words:.1f} words)", [told[0]["base"]])
                )
            steps = [(f / "metrics.jsonl").read_text().splitlines() for f in folders]
            spent = mean(sum(json.loads(s)["time/step"] for s in some) for some in steps) / 60
            title = f"{family}, {recipe} ({len(told)})"
            lines.append(row(title, [t["trained"] for t in told]) + f" {spent:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["smolvlm", "qwen2vl"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    asked = parser.parse_args()
    families = [asked.only] if asked.only else ["smolvlm", "qwen2vl"]
    if not asked.table:
        for recipe in RECIPES:
            for seed in range(asked.seeds):
                for family in families:
                    run(family, recipe, seed)
    print(table(families, asked.seeds))
