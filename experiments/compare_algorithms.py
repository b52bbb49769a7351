"""The algorithms against each other and against what needs none: one resumable command.

    .venv/bin/python experiments/compare_algorithms.py [--family smolvlm] [--seeds 0 1 2]
        [--only ppo …] [--set section.key=value …] [--prefix NAME] [--table]

Makes what runs/ lacks (a finished row has a cost.json), one after the other, and prints the table
for experiments/README.md; --table only prints. RL rows sample the same number of captions. Rows
that do not train have one seed. A cell is the mean over seeds of the numbers per image, with the
95 % bootstrap interval over images; `F1 over control` is paired with the best row that no RL
trained and no label reached, `closed` the share of the way from base to oracle.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import numpy as np
from rich.console import Console

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "experiments")]

import baselines  # noqa: E402

from vizer_rl.algorithms import find  # noqa: E402
from vizer_rl.config.load import load_run  # noqa: E402
from vizer_rl.config.schema import Run  # noqa: E402
from vizer_rl.data.scenes import truth_of  # noqa: E402
from vizer_rl.evaluation.metrics.scene_facts import columns  # noqa: E402
from vizer_rl.evaluation.statistics import estimates  # noqa: E402
from vizer_rl.training import splits  # noqa: E402

GIVEN = Path("data/captions-of-train-scenes.jsonl")  # for ViZer_GT: true captions
CONTROLS = {  # made here; the others by the command
    "base": baselines.base,
    "best prompt": baselines.best_prompt,
    "best of 8": baselines.best_of(8),
    "best of 16": baselines.best_of(16),
    "SFT on best of 8": baselines.sft_on_picks,
    "oracle (SFT on truth)": baselines.oracle,
}
TRAINED = {
    "ViZer_G": ["algorithm=vizer", "train.beta=0"],
    "ViZer_GT": [
        "algorithm=vizer",
        "train.beta=0",
        "mapper.source=captions",
        f"mapper.captions={GIVEN}",
    ],
    "RLOO": ["algorithm=rloo"],
    "PPO": ["algorithm=ppo"],
    "GRPO": ["algorithm=grpo"],
}
ROWS = [*[c for c in CONTROLS if "oracle" not in c], *TRAINED, "oracle (SFT on truth)"]
ONE_SEED = ("base", "best prompt", "best of 8", "best of 16")
COMPARED = (*ONE_SEED, "SFT on best of 8", "ViZer_G")  # the best of these is the control
METRICS = {
    "fact_precision": "precision",
    "fact_recall": "recall",
    "fact_f1": "F1",
    "hallucination_rate": "hallucinated",
}


def short(row: str) -> str:
    """A row's name in a run's: `best-of-8`."""
    return row.split(" (")[0].lower().replace(" ", "-").replace("_", "-")


def directory(prefix: str, family: str, row: str, seed: int) -> Path:
    return Path("runs") / f"{prefix}-{family}-{short(row)}-{seed}"


def settings(family: str, row: str, folder: Path, seed: int, more: list[str]) -> list[str]:
    """The words of a row's run after `vizer-rl train`, but for flags."""
    file = str(REPO / "experiments" / f"{family}.yaml")
    words = [f"name={folder.name}", f"seed={seed}", "profile=scenes", "tracking.wandb=off"]
    words += [*TRAINED.get(row, []), *more]
    if row in TRAINED:  # as many captions as GRPO: an update of a later epoch samples none
        made = load_run(Path(file), words)
        epochs = find(made.algorithm).Config.num_iterations
        epochs = made.train.get("num_iterations", epochs)
        words.append(f"train.max_steps={made.train['max_steps'] * epochs}")
    return [file, *words]


def make(prefix: str, family: str, row: str, seed: int, more: list[str]) -> None:
    """Make a row's run, unless it is there."""
    folder = directory(prefix, family, row, seed)
    if (folder / "cost.json").exists():
        return
    print(f"--- {folder.name}", flush=True)
    if row == "ViZer_GT":
        give_captions(family)
    file, *words = settings(family, row, folder, seed, more)
    run = load_run(Path(file), words)
    began = time.monotonic()
    if row in TRAINED:
        command = [sys.executable, "-m", "vizer_rl", "train", file, *words, "--overwrite"]
        subprocess.run(command, check=True)
        sampled = captions_sampled(run, folder)
    else:
        sampled = CONTROLS[row](baselines.Bench(run, Console()), folder)
    cost = {"seconds": time.monotonic() - began, "captions": sampled}
    (folder / "cost.json").write_text(json.dumps(cost))


def give_captions(family: str) -> None:
    """Write the file of true captions that ViZer_GT is given."""
    run = load_run(REPO / "experiments" / f"{family}.yaml", ["profile=scenes", "name=any"])
    images = splits.image_sets(run, Console())[0]
    truth = json.loads(truth_of(images.root).read_text())
    lines = [{"image_id": i, "caption": truth[i]["caption"]} for i in truth]
    GIVEN.write_text("".join(json.dumps(line) + "\n" for line in lines))


def captions_sampled(run: Run, folder: Path) -> int:
    """By rollouts, and by the mapper of ViZer_G."""
    steps = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    rollouts = sum("reward" in step for step in steps)
    accumulated = run.train.get("gradient_accumulation_steps", 1)
    sampled = rollouts * run.train["per_device_train_batch_size"] * accumulated
    if run.algorithm == "vizer" and run.mapper.source == "generated":
        about = json.loads((folder / "environment.json").read_text())
        sampled += min(run.mapper.images, about["train_images"])
    return sampled


def per_image(folders: list[Path]) -> dict[str, np.ndarray]:
    """Each metric's numbers (N,) per held-out image, averaged over runs."""
    found = []
    for folder in folders:
        held = json.loads((folder / "heldout.json").read_text())
        truth = json.loads(truth_of(Path(held["source"])).read_text())
        rows = [json.loads(x) for x in (folder / "captions.jsonl").read_text().splitlines()]
        said = [row["trained"] for row in rows]
        found.append(columns(said, [truth[row["image_id"]] for row in rows]))
        found[-1]["words"] = np.array([len(text.split()) for text in said], float)
    return {name: np.mean([one[name] for one in found], 0) for name in found[0]}


def cell(numbers: np.ndarray, digits: int = 3, sign: str = "") -> str:
    one = estimates({"": numbers})[""]
    value, low, high = (f"{one[k]:{sign}.{digits}f}" for k in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def table(prefix: str, family: str, seeds: list[int]) -> str:
    """The Markdown table of a family's runs that are there."""
    folders = {
        row: [
            f
            for seed in (seeds[:1] if row in ONE_SEED else seeds)
            if (f := directory(prefix, family, row, seed)).joinpath("cost.json").exists()
        ]
        for row in ROWS
    }
    folders = {row: some for row, some in folders.items() if some}
    if not folders:
        return f"{family}: no run is there yet"
    numbers = {row: per_image(some) for row, some in folders.items()}
    means = {row: float(n["fact_f1"].mean()) for row, n in numbers.items()}
    control = max((row for row in COMPARED if row in means), key=means.__getitem__, default=None)
    ends = means.get("base"), means.get("oracle (SFT on truth)")
    head = [f"{family} (seeds)", *METRICS.values(), "words", "held-out", "F1 over control"]
    lines = ["| " + " | ".join([*head, "closed", "captions", "minutes"]) + " |"]
    lines.append("|---" * (len(head) + 3) + "|")
    for row, some in folders.items():
        n = numbers[row]
        over = "control" if row == control else ""
        if control and row != control:
            over = cell(n["fact_f1"] - numbers[control]["fact_f1"], sign="+")
        closed = "" if None in ends else f"{(means[row] - ends[0]) / (ends[1] - ends[0]):.0%}"
        told = [json.loads((f / "eval.json").read_text())["trained"] for f in some]
        cost = [json.loads((f / "cost.json").read_text()) for f in some]
        cells = [f"{row} ({len(some)})", *(cell(n[m]) for m in METRICS), cell(n["words"], 1)]
        cells += [f"{mean(t['heldout_score']['value'] for t in told):.3f}", over, closed]
        cells += [f"{mean(c['captions'] for c in cost):.0f}"]
        cells += [f"{mean(c['seconds'] for c in cost) / 60:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for row in ("PPO", "GRPO"):
        over = [
            f"{other} {cell(numbers[row]['fact_f1'] - numbers[other]['fact_f1'], sign='+')}"
            for other in ("base", "ViZer_G", "best of 16")
            if {row, other} <= numbers.keys()
        ]
        lines += [f"F1 of {row} over " + ", ".join(over)] if over else []
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=["smolvlm", "qwen2vl"], help="one of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=[short(row) for row in ROWS], metavar="ROW")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="of every run")
    parser.add_argument("--prefix", default="alg", help="of the runs' names; another with --set")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    asked = parser.parse_args()
    families = [asked.family] if asked.family else ["smolvlm", "qwen2vl"]
    for seed in [] if asked.table else asked.seeds:
        for row in ROWS:
            if (row in ONE_SEED and seed != asked.seeds[0]) or (
                asked.only and short(row) not in asked.only
            ):
                continue
            for family in families:
                make(asked.prefix, family, row, seed, asked.set)
    print("\n\n".join(table(asked.prefix, family, asked.seeds) for family in families))
