"""Do the alarms come before the truth has fallen? The audit's set-ups against true F1.

    .venv/bin/python -m experiments.alarms [--only NAME …] [--family NAME] [--seeds 0 1 2] [--table]
    .venv/bin/python -m experiments.alarms --replay [LIMIT=NUMBER …]

Trains what runs/ lacks (the runs of experiments.audit_validity), scores the adapter of every
checkpoint by the truth of held-out scenes, which no run reads, and prints the tables for
experiments/README.md; --table only prints them. --replay judges what the runs have stored anew,
with other limits (alarm_rules.py, Limits), and trains nothing. In time: at the evaluation at which
F1 is first FALL below its best, or before. False: in a run that never fell.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from experiments import runner
from experiments.audit_validity import SETUPS, Trial
from experiments.truth_curve import truth_curve
from vizer_rl.training.alarm_judge import Judge
from vizer_rl.training.alarm_rules import RULES, Limits
from vizer_rl.training.evidence import Evidence

FALL = 0.05  # of F1, below the best so far
TRUTH = "f1.json"  # {step: F1}, the marker of a run that is done
HEAD = ["set-up", "F1: base, best, last", "fell at", "first alarm", "at", "delay", "false"]
Curve = dict[int, float]  # step to F1


@dataclass(frozen=True)
class Outcome:
    """What became of a run; steps are None where it did not fall, or no alarm came."""

    f1: Curve
    fell: int | None
    alarms: list[tuple[int, str]]  # step and name, in order

    @property
    def alarm(self) -> int | None:
        return self.alarms[0][0] if self.alarms else None

    @property
    def in_time(self) -> bool:
        return self.fell is not None and self.alarm is not None and self.alarm <= self.fell

    @property
    def false(self) -> bool:
        return self.fell is None and self.alarm is not None


def train(trial: Trial, name: str) -> Path:
    """Train a set-up and score its adapters, unless that was done; the run directory."""
    folder = trial.train(name)
    if not runner.finished([folder], TRUTH):
        f1 = {step: facts["fact_f1"] for step, facts in truth_curve(folder).items()}
        (folder / TRUTH).write_text(json.dumps(f1))
    return folder


def fall(f1: Curve) -> int | None:
    """The first step at which F1 is FALL below its best until then; None where there is none."""
    best = -math.inf
    for step, value in sorted(f1.items()):
        best = max(best, value)
        if value <= best - FALL:
            return step
    return None


def judged(evaluations: Iterable[dict[str, Any]], limits: Limits) -> list[tuple[int, str]]:
    """Step and name of the alarms that these rows of evaluations.jsonl raise under these limits."""
    judge, alarms = Judge(limits), []
    for row in evaluations:
        values = {name: math.nan if value is None else value for name, value in row.items()}
        alarms += [(row["step"], finding.name) for finding in judge.take(Evidence(**values))]
    return alarms


def outcome(folder: Path, limits: Limits | None) -> Outcome:
    """Of a run that is done; limits: to judge its evidence anew by, None: the alarms it gave."""
    f1 = {int(step): value for step, value in runner.read(folder, TRUTH).items()}
    if limits is not None:
        alarms = judged(runner.read(folder, "evaluations.jsonl"), limits)
    elif (folder / "alarms.jsonl").exists():
        alarms = [(row["step"], row["name"]) for row in runner.read(folder, "alarms.jsonl")]
    else:
        alarms = []
    return Outcome(f1, fall(f1), alarms)


def row(title: str, seeds: Sequence[Outcome]) -> list[str]:
    """The cells of a set-up; what differs from seed to seed stands side by side."""
    cells = [
        [
            ", ".join(f"{v:.2f}" for v in (o.f1[0], max(o.f1.values()), o.f1[max(o.f1)])),
            "–" if o.fell is None else str(o.fell),
            o.alarms[0][1] if o.alarms else "–",
            "–" if o.alarm is None else str(o.alarm),
            "–" if o.alarm is None or o.fell is None else f"{o.alarm - o.fell:+d}",
            "yes" if o.false else "no",
        ]
        for o in seeds
    ]
    return [f"{title} ({len(seeds)})", *(" / ".join(column) for column in zip(*cells, strict=True))]


def rule_rows(outcomes: dict[str, list[Outcome]]) -> list[list[str]]:
    """For each rule alone: runs that fell and it was in time, others in which it was raised."""
    lines = []
    for rule in (r.__name__ for r in RULES):
        fell, stood, default = [], [], []
        for name, seeds in outcomes.items():
            for o in seeds:
                first = next((step for step, alarm in o.alarms if alarm == rule), None)
                if o.fell is not None:
                    fell.append(first is not None and first <= o.fell)
                else:
                    stood.append(first is not None)
                if name == "default":
                    default.append(first is not None)
        lines.append([rule, *(f"{sum(x)} of {len(x)}" for x in (fell, stood, default))])
    return lines


def tables(family: str, seeds: Sequence[int], limits: Limits | None = None) -> str:
    """The table of set-ups, that of the rules, and the two numbers that they come to."""
    outcomes = {}
    for name in SETUPS:
        folders = [Trial(family, seed).directory(name) for seed in seeds]
        if folders := runner.finished(folders, TRUTH):
            outcomes[name] = [outcome(folder, limits) for folder in folders]
    runs = [o for seeds_of_one in outcomes.values() for o in seeds_of_one]
    fell = [o for o in runs if o.fell is not None]
    default = outcomes.get("default", [])
    lines = [row(SETUPS[name].title, done) for name, done in outcomes.items()]
    head = ["rule", "in time, of runs that fell", "raised, of the others", "of the default recipe"]
    return "\n\n".join(
        [
            runner.markdown([f"{family}: {HEAD[0]} (seeds)", *HEAD[1:]], lines),
            runner.markdown(head, rule_rows(outcomes)),
            f"In time in {sum(o.in_time for o in fell)} of {len(fell)} runs that fell; false in "
            f"{sum(o.false for o in runs)} of {len(runs) - len(fell)} that did not; raised in "
            f"{sum(bool(o.alarms) for o in default)} of {len(default)} of the default recipe.",
        ]
    )


def read_limits(words: Sequence[str]) -> Limits:
    """LIMIT=NUMBER words as Limits; SystemExit names those that there are."""
    names = [field.name for field in fields(Limits)]
    pairs = dict(word.partition("=")[::2] for word in words)
    if unknown := set(pairs) - {*names}:
        raise SystemExit(f"no limit is called {', '.join(unknown)}; allowed: {', '.join(names)}")
    return Limits(**{name: float(value) for name, value in pairs.items()})


if __name__ == "__main__":
    parser = runner.parser(__doc__, SETUPS, (0, 1, 2), "smolvlm")
    parser.add_argument("--replay", nargs="*", metavar="LIMIT=NUMBER", help="judge anew")
    flags = parser.parse_args()
    limits = None if flags.replay is None else read_limits(flags.replay)
    for seed in [] if flags.table or limits else flags.seeds:
        for name in flags.only or SETUPS:
            train(Trial(flags.family, seed), name)
    print(tables(flags.family, flags.seeds, limits))
