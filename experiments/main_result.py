"""The learning result: the default recipe and its honest counterparts, three seeds a family.

    .venv/bin/python -m experiments.main_result [--only smolvlm] [--seeds 3] [--table]

Runs what runs/ lacks (a finished run has an eval.json), one after the other, through the real
command, and prints the table for experiments/README.md. --table only prints it.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from experiments import runner

REWARDS = ("self_retrieval", "clip_similarity", "alignment", "repetition", "length")


def alone(name: str) -> list[str]:
    """Overrides that leave one reward, and no dial."""
    removed = (f"rewards.{r}=null" for r in REWARDS if r != name)
    return ["recipe=null", f"rewards.{name}.weight=1", *removed]


RECIPES = {
    "default": [],
    "clip_similarity alone": alone("clip_similarity"),
    "random reward": alone("random"),
}


def directory(family: str, recipe: str, seed: int) -> Path:
    return runner.directory(family, recipe.split()[0], seed)


def minutes(folder: Path) -> float:
    """What the steps of a run took."""
    return sum(step["time/step"] for step in runner.read(folder, "metrics.jsonl")) / 60


def table(families: Sequence[str], seeds: int) -> str:
    """The Markdown table of every run that is there."""
    head, rows = ["family, recipe (seeds)", *runner.METRICS.values(), "minutes"], []
    for family in families:
        base = None
        for recipe in RECIPES:
            folders = [directory(family, recipe, seed) for seed in range(seeds)]
            folders = runner.finished(folders, "eval.json")
            results = [runner.read(folder, "eval.json") for folder in folders]
            if not results:
                continue
            if base is None:
                base = results[0]
                title = f"{family}, base (true captions: {base['truth_mean_length']:.1f} words)"
                rows.append([title, *runner.metric_cells([base["base"]])])
            cells = runner.metric_cells([result["trained"] for result in results])
            spent = f"{mean(map(minutes, folders)):.1f}"
            rows.append([f"{family}, {recipe} ({len(results)})", *cells, spent])
    return runner.markdown(head, rows)


if __name__ == "__main__":
    parser = runner.parser(__doc__, runner.FAMILIES)
    parser.add_argument("--seeds", type=int, default=3)
    flags = parser.parse_args()
    families = flags.only or runner.FAMILIES
    for recipe, overrides in () if flags.table else RECIPES.items():
        for seed in range(flags.seeds):
            for family in families:
                runner.train(family, directory(family, recipe, seed), seed, overrides)
    print(table(families, flags.seeds))
