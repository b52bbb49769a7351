"""Seconds of training until captions are good: this engine against stock TRL, the same rewards.

    .venv/bin/python -m experiments.time_to_quality [--family NAME] [--seeds 0 1 2] [--table]

Trains what runs/ lacks, one run after the other, and scores the adapter of every 5 steps by the
truth of the held-out scenes. A run's seconds are its steps' own (`time/step` and `time/data`) up to
the first adapter of F1 .70, so neither loading nor scoring counts. `stock` is TRL's own sampling,
loss and images (`engine.shared_prefix=off`) under the same run file. Run it on an idle machine.
"""

import json
import math
from collections.abc import Sequence
from statistics import median

from experiments import runner
from experiments.truth_curve import truth_curve

GOAL, INTERVAL, STEPS = 0.70, 5, 50
REWARDS = "recipe=descriptive"  # under which captions get as far in so many steps
TRUTH = "truth_curve.json"  # {step: facts}, the marker of a run that is done
SIDES = {"ours": (), "stock": ("engine.shared_prefix=off",)}


def train(family: str, side: str, seed: int) -> None:
    """Train and score a run, unless that was done."""
    folder = runner.directory("seconds", family, side, seed)
    saving = f"train.save_steps={INTERVAL}", f"train.save_total_limit={STEPS // INTERVAL}"
    overrides = REWARDS, *SIDES[side], *runner.LAST_ADAPTER, *saving, f"train.max_steps={STEPS}"
    runner.train(family, folder, seed, overrides)
    if not runner.finished([folder], TRUTH):
        (folder / TRUTH).write_text(json.dumps(truth_curve(folder)))


def seconds(family: str, side: str, seed: int) -> tuple[float, float, float]:
    """Seconds and steps to the goal (infinite where it is not reached), and the F1 at the end."""
    folder = runner.directory("seconds", family, side, seed)
    curve = {int(step): facts["fact_f1"] for step, facts in runner.read(folder, TRUTH).items()}
    reached = min((step for step, f1 in curve.items() if f1 >= GOAL), default=math.inf)
    lines = [line for line in runner.read(folder, "metrics.jsonl") if "time/step" in line]
    spent = sum(x["time/step"] + x["time/data"] for x in lines if x["step"] <= reached)
    return spent if reached < math.inf else math.inf, reached, curve[max(curve)]


def table(families: Sequence[str], seeds: Sequence[int]) -> str:
    """Medians over the seeds, and how many times faster."""
    rows = []
    for family in families:
        folders = {
            s: [runner.directory("seconds", family, side, s) for side in SIDES] for s in seeds
        }
        done = [s for s, pair in folders.items() if runner.finished(pair, TRUTH) == pair]
        medians = {}
        for side in SIDES if done else ():
            runs = [seconds(family, side, seed) for seed in done]
            medians[side], steps, f1 = (median(column) for column in zip(*runs, strict=True))
            each = ", ".join(f"{spent:.0f}" for spent, *_ in runs)
            cells = [f"{medians[side]:.0f} ({each})", f"{steps:.0f}", f"{f1:.3f}"]
            rows.append([family, side, *cells, f"{medians[side] / medians['ours']:.1f}"])
    head = [
        "policy",
        "engine",
        f"seconds to F1 {GOAL:.2f}: median (each)",
        "steps",
        "F1 at the end",
    ]
    return runner.markdown([*head, "times ours"], rows)


if __name__ == "__main__":
    parser = runner.parser(__doc__, (), (0, 1, 2), "all")
    flags = parser.parse_args()
    chosen = [flags.family] if flags.family else runner.FAMILIES
    for seed in [] if flags.table else flags.seeds:
        for family in chosen:
            for side in SIDES:
                train(family, side, seed)
    print(table(chosen, flags.seeds))
