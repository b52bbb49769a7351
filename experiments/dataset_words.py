"""Words of the user's own: do trigger, format and truth hold together, and what teaches them?

    .venv/bin/python -m experiments.dataset_words [--seeds 0] [--only ROW …] [--table]

Trains what runs/ lacks, one after the other, through the real command, and prints the table for
experiments/README.md; --table only prints. All rows keep the last adapter. `default` is the recipe
of smolvlm.yaml, which knows of no trigger. `by reward alone` demands the same word at the same
place as a regular expression, so that it is not put in front of completions: what the base never
says has no gradient. `words alone` has trigger and format, but no reward that reads the image:
does truth hold by itself?
"""

import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from experiments import runner
from rewards.format import Format
from rewards.lib.openings import begins, declared_opening, without_opening
from vizer_rl.config.load import load_run

FILE = Path(__file__).parent / "dataset.yaml"
TRIGGER = declared_opening(load_run(FILE, ["profile=scenes"]).rewards)
RUN_FILES = {"default": "smolvlm"}  # other rows: dataset.yaml
ROWS: dict[str, list[str]] = {
    "default": [],
    "dataset": [],
    "by reward alone": [
        f"rewards.contains={{weight: 0.5, words: [{re.escape(TRIGGER)}], where: first}}"
    ],
    "words alone": ["rewards.self_retrieval=null", "rewards.clip_similarity=null"],
}
METRICS = {"fact_f1": "F1", "hallucination_rate": "hallucinated", "mean_length": "words"}


def directory(row: str, seed: int) -> Path:
    return runner.directory("words", runner.slug(row), seed)


def begins_with_trigger(caption: str) -> bool:
    """Whether a caption has the trigger word in front."""
    return begins(caption, TRIGGER)


def is_one_sentence(caption: str) -> bool:
    """Whether a caption, its trigger aside, fails no condition of the reward `format`."""
    return not Format().failed(without_opening(caption, TRIGGER))


def cells(folders: list[Path], part: str) -> list[str]:
    """The cells of a row: `part` is "base" or "trained"."""
    captions = [[line[part] for line in runner.read(f, "captions.jsonl")] for f in folders]

    def share(holds: Callable[[str], bool]) -> str:
        return f"{mean(mean(map(holds, texts)) for texts in captions):.3f}"

    results: list[Any] = [runner.read(folder, "eval.json")[part] for folder in folders]
    digits = {"mean_length": 1}
    metrics = [runner.interval([r[m] for r in results], digits.get(m, 3)) for m in METRICS]
    return [share(begins_with_trigger), share(is_one_sentence), *metrics]


def table(seeds: list[int]) -> str:
    """The Markdown table of the runs that are there: the base, then each row."""
    lines: list[list[str]] = []
    for row in ROWS:
        folders = [directory(row, seed) for seed in seeds]
        folders = runner.finished(folders, "eval.json", "captions.jsonl")
        if folders and not lines:
            lines.append(["base", *cells(folders[:1], "base")])
        if folders:
            lines.append([f"{row} ({len(folders)})", *cells(folders, "trained")])
    return runner.markdown(["row (seeds)", "trigger first", "format", *METRICS.values()], lines)


if __name__ == "__main__":
    parser = runner.parser(__doc__, ROWS, (0,))
    flags = parser.parse_args()
    for seed in [] if flags.table else flags.seeds:
        for row in flags.only or ROWS:
            overrides = [*runner.LAST_ADAPTER, *ROWS[row]]
            file = RUN_FILES.get(row, "dataset")
            runner.train(file, directory(row, seed), seed, overrides)
    print(table(flags.seeds))
