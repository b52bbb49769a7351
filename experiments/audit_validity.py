"""Is the audit valid? Its verdict on sixteen set-ups against what RL did to the truth.

    .venv/bin/python -m experiments.audit_validity [--only NAME …] [--family NAME]
        [--seeds 0 …] [--table]

Audits and trains what runs/ lacks, through the real commands, one after the other, and prints the
table for experiments/README.md; --table only prints it. The adapter after the last step is
judged, not the one that the held-out scorer likes best: that choice saves many a bad reward. Poor
scorers and bases are built when they are first needed, into data/audit_validity.
experiments.alarms judges the alarms of the same runs.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import PeftModel

from experiments import runner
from experiments.embedded import scorers
from experiments.embedded.pretrain import pool
from experiments.embedded.quality import scorer_quality
from vizer_rl.config.overrides import read_yaml
from vizer_rl.policy import load
from vizer_rl.scoring.clip import OpenClip

HERE, BUILT = Path(__file__).parent, Path("data/audit_validity")
REWARDS = str(HERE / "audit_validity_rewards")
BIASED, LONGER = f"{REWARDS}/biased.py", f"{REWARDS}/longer.py"
DEFAULT = tuple(read_yaml(HERE / "smolvlm.yaml")["rewards"])  # qwen2vl.yaml has the same
CONNECTOR = {"smolvlm": "model.connector", "qwen2vl": "model.visual.merger"}
INTERVAL, MAX_STEPS = 10, 1000  # between two evaluations (monitor.interval's default); of any run
MIN_CHANGE = 0.02  # F1; a change that is smaller, or whose interval holds 0, is none
WEAK_STEPS, WEAK_SCENES = (155, 100), 20_000  # of scorer A, which ships after 800 and 380


def only(*rewards: str) -> list[str]:
    """Overrides that leave these rewards, others (by name or file) with weight 1, and no dial."""
    removed = ["recipe=null"] + [f"rewards.{name}=null" for name in DEFAULT if name not in rewards]
    return removed + [f"rewards.{name}.weight=1" for name in rewards if name not in DEFAULT]


@dataclass(frozen=True)
class Trial:
    """What all set-ups of a table have in common; `overrides` beyond those of the set-up."""

    family: str = "smolvlm"
    seed: int = 0
    steps: int = 100
    overrides: tuple[str, ...] = ()

    def directory(self, name: str) -> Path:
        return runner.directory("foretell", self.family, name, self.seed)

    def train(self, name: str) -> Path:
        """Train a set-up, unless that was done; its run directory, with a checkpoint an interval.

        Alarms are on warn, and the adapter after the last step is the one that is evaluated.
        """
        folder = self.directory(name)
        if not runner.finished([folder], "eval.json"):
            runner.train(self.family, folder, self.seed, self._overrides(name))
        return folder

    def run(self, name: str) -> Path:
        """Train and audit a set-up, unless that was done; the run directory, which holds both."""
        folder = self.train(name)
        if not runner.finished([folder], "audit.json"):
            # of the base, which training leaves as it was
            runner.audit(self.family, folder, self.seed, self._overrides(name))
        return folder

    def _overrides(self, name: str) -> list[str]:
        setup = SETUPS[name]
        saved = (f"train.save_steps={INTERVAL}", f"train.save_total_limit={MAX_STEPS}")
        watched = ("monitor.audit=false", f"monitor.interval={INTERVAL}", "monitor.keep=last")
        built = setup.build(self) if setup.build else []
        steps = f"train.max_steps={self.steps}"
        return [steps, *watched, *saved, *setup.overrides, *built, *self.overrides]


def weak_scorer(_: Trial) -> list[str]:
    """Scorer A stopped early: nouns .57, attributes .63, objects swapped .44 (`quality.json`)."""
    folder = BUILT / "weak-scorer"
    if not (folder / "open_clip_model.safetensors").exists():
        data = pool(BUILT, 30_000_000, WEAK_SCENES)
        scorers.build("a", data, BUILT / "weak-scorer-work", folder, 4, WEAK_STEPS)
        quality = scorer_quality(OpenClip(f"local-dir:{folder}", torch.device("cpu")), 0)
        (folder / "quality.json").write_text(json.dumps(quality, indent=1))
    return [f"scorer.train=local-dir:{folder}"]


def blind_base(trial: Trial) -> list[str]:
    """The base with a connector that passes nothing: one caption, whatever the image."""
    folder = BUILT / f"{trial.family}-blind-base"
    if not folder.exists():
        model, processor = base(trial.family)
        for parameter in model.get_submodule(CONNECTOR[trial.family]).parameters():
            parameter.data.zero_()
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return [f"policy.model={folder}"]


def sated_base(trial: Trial) -> list[str]:
    """The base after the default recipe: RL has no headroom left."""
    folder = BUILT / f"{trial.family}-sated-base-{trial.seed}"
    if not folder.exists():
        model, processor = base(trial.family)
        trained = PeftModel.from_pretrained(model, str(trial.train("default") / "adapter"))
        trained.merge_and_unload().save_pretrained(folder)
        processor.save_pretrained(folder)
    return [f"policy.model={folder}"]


def base(family: str) -> tuple[Any, Any]:
    """The embedded policy and its processor."""
    return load.load_policy(family, "embedded", dtype="float32")


@dataclass(frozen=True)
class Setup:
    """A row: its title, its overrides, and what builds the poor part of it (more overrides)."""

    title: str
    overrides: tuple[str, ...] = ()
    build: Callable[[Trial], list[str]] | None = None


GUARDS = ("repetition", "length")
SETUPS = {
    "default": Setup("the default recipe"),
    "clip": Setup("CLIP cosine alone", tuple(only("clip_similarity"))),
    "bites": Setup(
        "CLIP cosine alone, 300 steps", (*only("clip_similarity"), "train.max_steps=300")
    ),
    "biased": Setup("CLIP cosine with favourite words", tuple(only(BIASED))),
    "retrieval": Setup("self_retrieval and guards", tuple(only("self_retrieval", *GUARDS))),
    "random": Setup("random reward", tuple(only("random"))),
    "shuffled": Setup("CLIP cosine, wrong image", tuple(only(f"{REWARDS}/shuffled_image.py"))),
    "constant": Setup("constant reward", tuple(only(f"{REWARDS}/constant.py"))),
    "longer": Setup("number of words alone", tuple(only(LONGER))),
    "band": Setup("length band alone", tuple(only("length"))),
    "uncalibrated": Setup(
        "retrieval at scale 100, no floor, no guard", tuple(only(f"{REWARDS}/uncalibrated.py"))
    ),
    "shorter": Setup(
        "CLIP cosine, and as few words as may be",
        (
            *only("clip_similarity", f"{REWARDS}/longer.py"),
            f"rewards.{REWARDS}/longer.py.weight=-1",
        ),
    ),
    "weak": Setup("default, under-trained scorer", build=weak_scorer),
    "weak-clip": Setup(
        "CLIP cosine alone, under-trained scorer", tuple(only("clip_similarity")), weak_scorer
    ),
    "sated": Setup("default, a base that says all it knows", build=sated_base),
    "blind": Setup("default, a base that cannot see", build=blind_base),
}


def outcome(result: dict[str, Any]) -> str:
    """What RL did to the truth: good, bad, or mixed: F1 rose and hallucination did not fall."""
    f1, hallucination = (result["change"][m] for m in ("fact_f1", "hallucination_rate"))
    if f1["low"] <= 0 or f1["value"] < MIN_CHANGE:
        return "bad"
    return "mixed" if hallucination["value"] > -MIN_CHANGE else "good"


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


def verdict_cell(audit: dict[str, Any]) -> str:
    """The verdict and, unless all is well, what the first line of its level is about."""
    level, lines = audit["verdict"]["overall"], audit["verdict"]["lines"]
    reason = next((line["about"] for line in lines if line["level"] == level), "")
    return level if level == "pass" else f"{level} {reason}".strip()


def row(title: str, seeds: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """The cells of a set-up, of (audit.json, eval.json) of each seed.

    Words that differ from seed to seed stand side by side; numbers are means, their intervals the
    widest.
    """
    verdicts = [verdict_cell(audit) for audit, _ in seeds]
    results = [result for _, result in seeds]
    outcomes = [outcome(result) for result in results]
    before, after = (
        fmean(result[side]["fact_f1"]["value"] for result in results)
        for side in ("base", "trained")
    )
    agreed = [AGREED[v.split()[0], o] for v, o in zip(verdicts, outcomes, strict=True)]
    return [
        title,
        joined(verdicts),
        runner.interval([result["change"]["fact_f1"] for result in results], sign="+"),
        runner.interval([result["change"]["hallucination_rate"] for result in results], sign="+"),
        f"{before:.3f} → {after:.3f}",
        joined(outcomes),
        joined(agreed),
    ]


def joined(cells: list[str]) -> str:
    return cells[0] if len(set(cells)) == 1 else " / ".join(cells)


def table(trials: list[Trial]) -> str:
    """The Markdown table of every set-up that is done in all trials (seeds)."""
    head = ["set-up", "audit", "change of F1", "change of hallucinated", "F1", "RL was", "agreed"]
    files, rows = ("audit.json", "eval.json"), []
    for name, setup in SETUPS.items():
        folders = [trial.directory(name) for trial in trials]
        if runner.finished(folders, *files) == folders:
            seeds = [(runner.read(f, files[0]), runner.read(f, files[1])) for f in folders]
            rows.append(row(setup.title, seeds))
    return runner.markdown(head, rows)


if __name__ == "__main__":
    parser = runner.parser(__doc__, SETUPS, (0,), "smolvlm")
    flags = parser.parse_args()
    trials = [Trial(flags.family, seed) for seed in flags.seeds]
    for trial in [] if flags.table else trials:
        for name in flags.only or SETUPS:
            trial.run(name)
    print(table(trials))
