"""Every reward on its own: what the audit says of it, what it costs, what RL with it does.

    .venv/bin/python experiments/reward_ablation.py [--family smolvlm] [--seeds 0 1 2] [--only ROW]
        [--table]

Trains and audits what runs/ lacks, one after the other, through the real commands, and prints two
tables for experiments/README.md; --table only prints. The adapter after the last step is judged,
not the one that the held-out scorer likes best: that choice would hide what a reward does.
`claim_check` is left out: the embedded policies answer no question.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

from main_result import METRICS

CONTENT = {  # by what they read
    "self_retrieval": "CLIP",
    "clip_similarity": "CLIP",
    "region_grounding": "CLIP",
    "alignment": "policy",
    "visual_dependence": "policy",
    "sample_support": "policy",
    "random": "nothing",
}
GUARDS = ("gate", "fluency", "repetition", "length")
DEFAULT = ("self_retrieval", "clip_similarity", "alignment", "repetition", "length")


def alone(name: str) -> list[str]:
    """Overrides that leave one content reward and the guards gate, repetition and length."""
    gone = [f"rewards.{other}=null" for other in DEFAULT if other in CONTENT and other != name]
    return [*gone, f"rewards.{name}.weight=1", "rewards.gate.weight=0.3"]


def recipes() -> dict[str, list[str]]:
    """Name of a row to its overrides."""
    made = {f"{name} alone": alone(name) for name in CONTENT}
    made |= {"default": []} | {f"default without {n}": [f"rewards.{n}=null"] for n in DEFAULT}
    added = [n for n in (*CONTENT, *GUARDS) if n not in (*DEFAULT, "random")]
    made |= {f"default with {n}": [f"rewards.{n}.weight=0.3"] for n in added}
    return made


def directory(family: str, row: str, seed: int) -> Path:
    return Path("runs") / f"suite-{family}-{row.replace(' ', '-').replace('_', '-')}-{seed}"


def command(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "vizer_rl", *words], check=True)


def train(family: str, row: str, seed: int, overrides: list[str]) -> None:
    """Train and evaluate, unless that was done."""
    folder = directory(family, row, seed)
    if not (folder / "eval.json").exists():
        words = [f"experiments/{family}.yaml", "profile=scenes", f"name={folder.name}"]
        words += [f"seed={seed}", "tracking.wandb=off", "monitor.audit=false"]
        words += ["monitor.interval=0", "monitor.keep=last", *overrides]
        command("train", *words, "--overwrite")


def audit(family: str) -> Path:
    """One step and the audit of all rewards together, those beyond the default with weight 0."""
    folder = directory(family, "all", 0)
    others = [n for n in (*CONTENT, *GUARDS) if n not in DEFAULT]
    words = [f"experiments/{family}.yaml", "profile=scenes", f"name={folder.name}"]
    words += ["tracking.wandb=off", "monitor.audit=false", "train.max_steps=20"]
    words += [f"rewards.{n}.weight=0" for n in others]
    if not (folder / "eval.json").exists():
        command("train", *words, "--overwrite")
    if not (folder / "audit.json").exists():
        command("audit", *words)
    return folder


def audit_table(family: str) -> str:
    """Win rate over each attack, rank correlation with truth, cost; one line per reward."""
    folder = directory(family, "all", 0)
    if not (folder / "audit.json").exists():
        return f"{family}: not audited yet"
    told = json.loads((folder / "audit.json").read_text())
    steps = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()][1:]
    attacks = list(told["attacks"])
    head = [f"{family}: reward", *attacks, "truth, within image", "ms a caption", "of the step"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in [*told["rewards"], "sum"]:
        wins = [told["attacks"][a]["wins"][name] for a in attacks]
        cells = [name, *("" if w is None else f"{w['value']:.2f}" for w in wins)]
        truth = told["truth"]["within"].get(name)
        cells.append("" if truth is None else f"{truth['value']:+.2f}")
        if name == "sum":
            cells += ["", ""]
        else:
            share = mean(s[f"time/reward/{name}"] / s["time/step"] for s in steps)
            cells += [f"{told['milliseconds'][name]:.2f}", f"{share:.1%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def change(values: list[dict], digits: int) -> str:
    """Mean over seeds, then the widest interval of any seed."""
    low, high = min(v["low"] for v in values), max(v["high"] for v in values)
    return f"{mean(v['value'] for v in values):+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def rl_table(family: str, seeds: list[int]) -> str:
    """What RL with each recipe changed, against the base."""
    head = [f"{family}: rewards (seeds)", *METRICS.values()]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in recipes():
        files = [directory(family, row, s) / "eval.json" for s in seeds]
        told = [json.loads(f.read_text())["change"] for f in files if f.exists()]
        if told:
            digits = {"mean_length": 1}
            cells = [change([t[m] for t in told], digits.get(m, 3)) for m in METRICS]
            lines.append(f"| {row} ({len(told)}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=["smolvlm", "qwen2vl"], default="smolvlm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(recipes()), metavar="ROW")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    asked = parser.parse_args()
    if not asked.table:
        audit(asked.family)
        for seed in asked.seeds:
            for row, overrides in recipes().items():
                if not asked.only or row in asked.only:
                    train(asked.family, row, seed, overrides)
    print(audit_table(asked.family), rl_table(asked.family, asked.seeds), sep="\n\n")
