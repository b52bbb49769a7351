"""Does the audit foretell? Its verdict on fourteen set-ups against what RL did to the truth.

    .venv/bin/python experiments/audit_validity.py [--only NAME …] [--family NAME]
        [--seeds 0 …] [--table]

Audits and trains what runs/ lacks, through the real commands, one after the other, and prints the
table for experiments/README.md; --table only prints it. The adapter after the last step is
judged, not the one that the held-out scorer likes best: that choice saves many a bad reward. Poor
scorers and bases are built when they are first needed, into data/audit_validity.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel

from experiments.embedded import scorers
from experiments.embedded.pretrain import pool
from experiments.embedded.quality import scorer_quality
from vizer_rl.config.overrides import read_yaml
from vizer_rl.policy import load
from vizer_rl.scoring.clip import OpenClip

HERE, BUILT = Path(__file__).parent, Path("data/audit_validity")
OWN = str(HERE / "audit_validity_rewards")
DEFAULT = tuple(read_yaml(HERE / "smolvlm.yaml")["rewards"])  # qwen2vl.yaml has the same
CONNECTOR = {"smolvlm": "model.connector", "qwen2vl": "model.visual.merger"}
CLEAR = 0.02  # F1; a change that is smaller, or whose interval holds 0, is none
WEAK_STEPS, WEAK_SCENES = (155, 290), 20_000  # of scorer A, which ships after 1000 and 1400


def only(*rewards: str) -> list[str]:
    """Overrides that leave these rewards, others (by name or file) with weight 1."""
    gone = [f"rewards.{name}=null" for name in DEFAULT if name not in rewards]
    return gone + [f"rewards.{name}.weight=1" for name in rewards if name not in DEFAULT]


@dataclass(frozen=True)
class Trial:
    """What all set-ups of a table have in common; more: overrides."""

    family: str = "smolvlm"
    seed: int = 0
    steps: int = 100
    more: tuple[str, ...] = ()

    def directory(self, name: str) -> Path:
        return Path("runs") / f"audit-{self.family}-{name}-{self.seed}"

    def run(self, name: str) -> Path:
        """Audit and train a set-up, unless that was done; the run directory, which holds both."""
        directory, setup = self.directory(name), SETUPS[name]
        trained, audited = ((directory / file).exists() for file in ("eval.json", "audit.json"))
        if trained and audited:
            return directory
        built = setup.build(self) if setup.build else []
        words = [str(HERE / f"{self.family}.yaml"), "profile=scenes", f"name={directory.name}"]
        words += [f"seed={self.seed}", f"train.max_steps={self.steps}", "tracking.wandb=off"]
        words += ["monitor.audit=false", "monitor.interval=0", "monitor.keep=last"]
        words += [*setup.overrides, *built, *self.more]
        if not trained:
            command("train", *words, "--overwrite")
        command("audit", *words)  # of the base, which training leaves as it was
        return directory


def weak_scorer(_: Trial) -> list[str]:
    """Scorer A stopped early: right about colours and sizes, often wrong about shapes."""
    folder = BUILT / "weak-scorer"
    if not (folder / "open_clip_model.safetensors").exists():
        data = pool(BUILT, 30_000_000, WEAK_SCENES)
        scorers.build("a", data, BUILT / "weak-scorer-work", folder, 4, WEAK_STEPS)
        told = scorer_quality(OpenClip(f"local-dir:{folder}", torch.device("cpu")))
        (folder / "quality.json").write_text(json.dumps(told, indent=1))
    return [f"scorer.train=local-dir:{folder}"]


def blind_base(trial: Trial) -> list[str]:
    """The base with a connector that passes nothing: it says what is often said, of any image."""
    folder = BUILT / f"{trial.family}-blind-base"
    if not folder.exists():
        model, processor = base(trial.family)
        for parameter in model.get_submodule(CONNECTOR[trial.family]).parameters():
            parameter.data.zero_()
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return [f"policy.model={folder}"]


def sated_base(trial: Trial) -> list[str]:
    """The base after the default recipe: what it can say of an image it says already."""
    folder = BUILT / f"{trial.family}-sated-base-{trial.seed}"
    if not folder.exists():
        model, processor = base(trial.family)
        trained = PeftModel.from_pretrained(model, str(trial.run("default") / "adapter"))
        trained.merge_and_unload().save_pretrained(folder)
        processor.save_pretrained(folder)
    return [f"policy.model={folder}"]


def base(family: str) -> tuple[Any, Any]:
    """The embedded policy and its processor."""
    told = {"dtype": "float32", "attn_implementation": "auto", "image_splitting": False}
    return load.load_policy(family, SimpleNamespace(model="embedded", **told))


@dataclass(frozen=True)
class Setup:
    """A set-up: what it is, its overrides, and what builds the poor part of it."""

    about: str
    overrides: tuple[str, ...] = ()
    build: Callable[[Trial], list[str]] | None = None


GUARDS = ("repetition", "length")
SETUPS = {
    "default": Setup("the default recipe"),
    "clip": Setup("CLIP cosine alone", tuple(only("clip_similarity"))),
    "retrieval": Setup("self_retrieval and guards", tuple(only("self_retrieval", *GUARDS))),
    "random": Setup("random reward", tuple(only("random"))),
    "shuffled": Setup("CLIP cosine, wrong image", tuple(only(f"{OWN}/shuffled_image.py"))),
    "constant": Setup("constant reward", tuple(only(f"{OWN}/constant.py"))),
    "longer": Setup("number of words alone", tuple(only(f"{OWN}/longer.py"))),
    "band": Setup("length band alone", tuple(only("length"))),
    "uncalibrated": Setup(
        "retrieval at scale 100, no floor, no guard", tuple(only(f"{OWN}/uncalibrated.py"))
    ),
    "shorter": Setup(
        "CLIP cosine, and as few words as may be",
        (*only("clip_similarity", f"{OWN}/longer.py"), f"rewards.{OWN}/longer.py.weight=-1"),
    ),
    "weak": Setup("default, under-trained scorer", build=weak_scorer),
    "weak-clip": Setup(
        "CLIP cosine alone, under-trained scorer", tuple(only("clip_similarity")), weak_scorer
    ),
    "sated": Setup("default, a base that says all it knows", build=sated_base),
    "blind": Setup("default, a base that cannot see", build=blind_base),
}


def command(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "vizer_rl", *words], check=True)


def outcome(told: dict[str, Any]) -> str:
    """What RL did to the truth: good, bad, or mixed: F1 rose and hallucination did not fall."""
    f1, wrong = told["change"]["fact_f1"], told["change"]["hallucination_rate"]
    if f1["low"] <= 0 or f1["value"] < CLEAR:
        return "bad"
    return "mixed" if wrong["value"] > -CLEAR else "good"


AGREED = {
    ("pass", "good"): "yes",
    ("warn", "good"): "yes",
    ("fail", "good"): "no: refused",
    ("pass", "mixed"): "no: missed",
    ("warn", "mixed"): "yes",
    ("fail", "mixed"): "yes",
    ("pass", "bad"): "no: missed",
    ("warn", "bad"): "flagged",
    ("fail", "bad"): "yes",
}


def row(about: str, done: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """One line of the table, of (audit.json, eval.json) of each seed.

    Words that differ from seed to seed stand side by side; numbers are means, their intervals the
    widest.
    """
    verdicts, came = [], [outcome(told) for _, told in done]
    for verdict in (foretold["verdict"] for foretold, _ in done):
        first = next((n for n in verdict["lines"] if n["level"] == verdict["overall"]), None)
        why = first["about"] if first and verdict["overall"] != "pass" else ""
        verdicts.append(f"{verdict['overall']} {why}".strip())
    sides = [
        fmean(told[side]["fact_f1"]["value"] for _, told in done) for side in ("base", "trained")
    ]
    cells = [
        about,
        words(verdicts),
        interval([told["change"]["fact_f1"] for _, told in done]),
        interval([told["change"]["hallucination_rate"] for _, told in done]),
        f"{sides[0]:.3f} → {sides[1]:.3f}",
        words(came),
        words([AGREED[v.split()[0], c] for v, c in zip(verdicts, came, strict=True)]),
    ]
    return "| " + " | ".join(cells) + " |"


def words(told: list[str]) -> str:
    return told[0] if len(set(told)) == 1 else " / ".join(told)


def interval(seeds: list[dict[str, float]]) -> str:
    low, high = min(e["low"] for e in seeds), max(e["high"] for e in seeds)
    return f"{fmean(e['value'] for e in seeds):+.3f} [{low:+.3f}, {high:+.3f}]"


def table(trials: list[Trial]) -> str:
    """The Markdown table of every set-up that is done in all trials (seeds)."""
    head = ["set-up", "audit", "change of F1", "change of hallucinated", "F1", "RL was", "agreed"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, setup in SETUPS.items():
        files = [
            [trial.directory(name) / file for file in ("audit.json", "eval.json")]
            for trial in trials
        ]
        if all(file.exists() for some in files for file in some):
            done = [tuple(json.loads(file.read_text()) for file in some) for some in files]
            lines.append(row(setup.about, done))
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SETUPS, metavar="NAME")
    parser.add_argument("--family", choices=CONNECTOR, default="smolvlm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--table", action="store_true", help="only print what is there")
    asked = parser.parse_args()
    trials = [Trial(asked.family, seed) for seed in asked.seeds]
    for trial in [] if asked.table else trials:
        for name in asked.only or SETUPS:
            trial.run(name)
    print(table(trials))
