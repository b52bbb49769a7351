"""The algorithms against each other and against what needs none: one resumable command.

    .venv/bin/python -m experiments.compare_algorithms [--family smolvlm] [--seeds 0 1 2]
        [--only ppo …] [--set section.key=value …] [--prefix NAME] [--table]

Makes what runs/ lacks (a finished row has a cost.json), one after the other, and prints the table
for experiments/README.md; --table only prints. RL rows sample the same number of captions. Rows
that do not train have one seed. A cell is the mean over seeds of the numbers per image, with the
95 % bootstrap interval over images; `F1 over control` is paired with the best row that no RL
trained and no label reached, `closed` the share of the way from base to oracle.
"""

import json
import time
from pathlib import Path
from statistics import mean

import numpy as np
from rich.console import Console

from experiments import baselines, runner
from vizer_rl.config.load import load_run
from vizer_rl.config.schema import Run
from vizer_rl.config.trainer_settings import SETTINGS
from vizer_rl.data.scenes import truth_of
from vizer_rl.evaluation.metrics.scene_facts import columns
from vizer_rl.evaluation.statistics import estimates
from vizer_rl.training import splits

TRUE_CAPTIONS = Path("data/captions-of-train-scenes.jsonl")  # for ViZer_GT
ORACLE = "oracle (SFT on truth)"
BASELINES = {  # made here; the others by the command
    "base": baselines.base,
    "best prompt": baselines.best_prompt,
    "best of 8": baselines.best_of(8),
    "best of 16": baselines.best_of(16),
    "SFT on best of 8": baselines.sft_on_best,
    ORACLE: baselines.oracle,
}
VIZER = ("algorithm=vizer", "train.beta=0")
TRAINED = {
    "ViZer_G": VIZER,
    "ViZer_GT": (*VIZER, "mapper.source=captions", f"mapper.captions={TRUE_CAPTIONS}"),
    "RAFT one round": ("algorithm=raft", "train.sample_from=reference", "monitor.keep=last"),
    "RAFT": ("algorithm=raft",),
    "RLOO": ("algorithm=rloo",),
    "PPO": ("algorithm=ppo",),
    "GRPO": ("algorithm=grpo",),
}
ROWS = [*[row for row in BASELINES if row != ORACLE], *TRAINED, ORACLE]
ONE_SEED = ("base", "best prompt", "best of 8", "best of 16")
COMPARED = (*ONE_SEED, "SFT on best of 8", "RAFT one round", "ViZer_G")  # control: the best
METRICS = {
    "fact_precision": "precision",
    "fact_recall": "recall",
    "fact_f1": "F1",
    "hallucination_rate": "hallucinated",
}
Columns = dict[str, np.ndarray]  # metric to its numbers (N,) per held-out image


def directory(prefix: str, family: str, row: str, seed: int) -> Path:
    return runner.directory(prefix, family, runner.slug(row), seed)


def arguments(family: str, row: str, folder: Path, seed: int, overrides: list[str]) -> list[str]:
    """Run file and overrides of a row; those that train sample as many captions as GRPO."""
    file, *words = runner.arguments(family, folder, seed, [*TRAINED.get(row, ()), *overrides])
    if row in TRAINED:  # an update of a later epoch samples none
        run = load_run(Path(file), words)
        epochs = SETTINGS[run.algorithm].num_iterations
        epochs = run.train.get("num_iterations", epochs)
        words.append(f"train.max_steps={run.train['max_steps'] * epochs}")
    return [file, *words]


def make(prefix: str, family: str, row: str, seed: int, overrides: list[str]) -> None:
    """Make a row's run, unless it is there."""
    folder = directory(prefix, family, row, seed)
    if runner.finished([folder], "cost.json"):
        return
    print(f"--- {folder.name}", flush=True)
    if row == "ViZer_GT":
        write_true_captions(family)
    file, *words = arguments(family, row, folder, seed, overrides)
    run = load_run(Path(file), words)
    start = time.monotonic()
    if row in TRAINED:
        runner.command("train", file, *words, "--overwrite")
        sampled = captions_sampled(run, folder)
    else:
        sampled = BASELINES[row](baselines.Baselines(run, Console()), folder)
    cost = {"seconds": time.monotonic() - start, "captions": sampled}
    (folder / "cost.json").write_text(json.dumps(cost))


def write_true_captions(family: str) -> None:
    """Write the file of true captions for ViZer_GT."""
    file, *words = runner.arguments(family, Path("any"), 0, [])
    images = splits.image_sets(load_run(Path(file), words), Console())[0]
    truth = json.loads(truth_of(images.root).read_text())
    lines = [{"image_id": i, "caption": truth[i]["caption"]} for i in truth]
    TRUE_CAPTIONS.write_text("".join(json.dumps(line) + "\n" for line in lines))


def captions_sampled(run: Run, folder: Path) -> int:
    """By rollouts, and by the mapper of ViZer_G."""
    rollouts = sum("reward" in step for step in runner.read(folder, "metrics.jsonl"))
    accumulated = run.train.get("gradient_accumulation_steps", 1)
    sampled = rollouts * run.train["per_device_train_batch_size"] * accumulated
    if run.algorithm == "vizer" and run.mapper.source == "generated":
        train_images = runner.read(folder, "environment.json")["train_images"]
        sampled += min(run.mapper.images, train_images)
    return sampled


def per_image(folders: list[Path]) -> Columns:
    """Each metric's numbers per held-out image, averaged over runs."""
    seeds = []
    for folder in folders:
        source = Path(runner.read(folder, "heldout.json")["source"])
        truth = json.loads(truth_of(source).read_text())
        rows = runner.read(folder, "captions.jsonl")
        captions = [row["trained"] for row in rows]
        seeds.append(columns(captions, [truth[row["image_id"]] for row in rows]))
        seeds[-1]["words"] = np.array([len(caption.split()) for caption in captions], float)
    return {name: np.mean([seed[name] for seed in seeds], 0) for name in seeds[0]}


def cell(numbers: np.ndarray, digits: int = 3, sign: str = "") -> str:
    return runner.interval([estimates({"": numbers})[""]], digits, sign)


def f1_over(numbers: dict[str, Columns], row: str, other: str) -> str:
    """The paired difference of F1 between two rows."""
    return cell(numbers[row]["fact_f1"] - numbers[other]["fact_f1"], sign="+")


def table(prefix: str, family: str, seeds: list[int]) -> str:
    """The Markdown table of a family's runs that are there, and two lines of differences."""
    folders = {}
    for row in ROWS:
        row_seeds = seeds[:1] if row in ONE_SEED else seeds
        runs = [directory(prefix, family, row, seed) for seed in row_seeds]
        if runs := runner.finished(runs, "cost.json"):
            folders[row] = runs
    if not folders:
        return f"{family}: no run is there yet"
    numbers = {row: per_image(runs) for row, runs in folders.items()}
    f1 = {row: float(n["fact_f1"].mean()) for row, n in numbers.items()}
    control = max((row for row in COMPARED if row in f1), key=f1.__getitem__, default=None)
    base, oracle = f1.get("base"), f1.get(ORACLE)
    rows = []
    for row, runs in folders.items():
        n = numbers[row]
        over = "control" if row == control else ""
        if control and row != control:
            over = f1_over(numbers, row, control)
        closed = "" if None in (base, oracle) else f"{(f1[row] - base) / (oracle - base):.0%}"
        results = [runner.read(folder, "eval.json")["trained"] for folder in runs]
        costs = [runner.read(folder, "cost.json") for folder in runs]
        cells = [f"{row} ({len(runs)})", *(cell(n[m]) for m in METRICS), cell(n["words"], 1)]
        cells += [f"{mean(r['heldout_score']['value'] for r in results):.3f}", over, closed]
        cells += [f"{mean(cost['captions'] for cost in costs):.0f}"]
        cells += [f"{mean(cost['seconds'] for cost in costs) / 60:.1f}"]
        rows.append(cells)
    head = [f"{family} (seeds)", *METRICS.values(), "words", "held-out", "F1 over control"]
    lines = [runner.markdown([*head, "closed", "captions", "minutes"], rows), ""]
    for row in ("PPO", "GRPO"):
        others = [o for o in ("base", "ViZer_G", "best of 16") if {row, o} <= numbers.keys()]
        over = ", ".join(f"{other} {f1_over(numbers, row, other)}" for other in others)
        lines += [f"F1 of {row} over {over}"] if over else []
    return "\n".join(lines)


if __name__ == "__main__":
    rows = {runner.slug(row): row for row in ROWS}
    parser = runner.parser(__doc__, rows, (0, 1, 2), "all")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="of every run")
    parser.add_argument("--prefix", default="alg", help="of the runs' names; another with --set")
    flags = parser.parse_args()
    families = [flags.family] if flags.family else runner.FAMILIES
    for seed in [] if flags.table else flags.seeds:
        for name, row in rows.items():
            repeated = row in ONE_SEED and seed != flags.seeds[0]
            if repeated or (flags.only and name not in flags.only):
                continue
            for family in families:
                make(flags.prefix, family, row, seed, flags.set)
    print("\n\n".join(table(flags.prefix, family, flags.seeds) for family in families))
