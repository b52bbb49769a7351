"""Every reward on its own: what the audit says of it, what it costs, what RL with it does.

    .venv/bin/python -m experiments.reward_ablation [--family smolvlm] [--seeds 0 1 2]
        [--only ROW …] [--table]

Trains and audits what runs/ lacks, one after the other, through the real commands, and prints two
tables for experiments/README.md; --table only prints. The adapter after the last step is judged,
not the one that the held-out scorer likes best: that choice would hide what a reward does.
`claim_check` is left out: the embedded policies answer no question.
"""

from pathlib import Path
from statistics import mean
from typing import Any

from experiments import runner

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
AUDITED = "all"  # the run whose audit has all rewards


def alone(name: str) -> list[str]:
    """Overrides that leave one content reward and the guards gate, repetition and length."""
    removed = [f"rewards.{r}=null" for r in DEFAULT if r in CONTENT and r != name]
    return ["recipe=null", *removed, f"rewards.{name}.weight=1", "rewards.gate.weight=0.3"]


def recipes() -> dict[str, list[str]]:
    """Name of a row to its overrides."""
    rows = {f"{name} alone": alone(name) for name in CONTENT}
    rows |= {"default": [], "default without certainty": ["recipe=null"]}
    rows |= {f"default without {n}": [f"rewards.{n}=null"] for n in DEFAULT}
    added = [n for n in (*CONTENT, *GUARDS) if n not in (*DEFAULT, "random")]
    rows |= {f"default with {n}": [f"rewards.{n}.weight=0.3"] for n in added}
    return rows


def directory(family: str, row: str, seed: int) -> Path:
    return runner.directory("suite", family, runner.slug(row), seed)


def audit(family: str) -> None:
    """20 steps and the audit of all rewards together, those beyond the default with weight 0."""
    added = [f"rewards.{n}.weight=0" for n in (*CONTENT, *GUARDS) if n not in DEFAULT]
    overrides = ["monitor.audit=false", "train.max_steps=20", *added]
    runner.train(family, directory(family, AUDITED, 0), 0, overrides)
    runner.audit(family, directory(family, AUDITED, 0), 0, overrides)


def audit_table(family: str) -> str:
    """Win rate over each attack, rank correlation with truth, cost; one line per reward."""
    folder = directory(family, AUDITED, 0)
    if not runner.finished([folder], "audit.json"):
        return f"{family}: not audited yet"
    audit = runner.read(folder, "audit.json")
    steps = runner.read(folder, "metrics.jsonl")[1:]
    attacks, rows = audit["attacks"], []
    for name in [*audit["rewards"], "sum"]:
        wins = [attack["wins"][name] for attack in attacks.values()]
        truth = audit["truth"]["within"].get(name)
        cells = [name, *map(win_cell, wins)]
        cells.append("" if truth is None else f"{truth['value']:+.2f}")
        if name == "sum":
            cells += ["", ""]
        else:
            share = mean(step[f"time/reward/{name}"] / step["time/step"] for step in steps)
            cells += [f"{audit['milliseconds'][name]:.2f}", f"{share:.1%}"]
        rows.append(cells)
    head = [f"{family}: reward", *attacks, "truth, within image", "ms a caption", "of the step"]
    return runner.markdown(head, rows)


def win_cell(picks: dict[str, Any] | None) -> str:
    """How often the original won and, behind a =, tied."""
    if picks is None:
        return ""
    tied = picks.get("tied", 0.0)  # runs of before have none
    return f"{picks['value']:.2f}" + (f" ={tied:.2f}" if tied >= 0.005 else "")


def rl_table(family: str, seeds: list[int]) -> str:
    """What RL with each recipe changed, against the base."""
    rows = []
    for row in recipes():
        folders = runner.finished([directory(family, row, seed) for seed in seeds], "eval.json")
        changes = [runner.read(folder, "eval.json")["change"] for folder in folders]
        if changes:
            rows.append([f"{row} ({len(changes)})", *runner.metric_cells(changes, "+")])
    return runner.markdown([f"{family}: rewards (seeds)", *runner.METRICS.values()], rows)


if __name__ == "__main__":
    parser = runner.parser(__doc__, recipes(), (0, 1, 2), "smolvlm")
    flags = parser.parse_args()
    if not flags.table:
        audit(flags.family)
        for seed in flags.seeds:
            for row in flags.only or recipes():
                overrides = [*runner.LAST_ADAPTER, *recipes()[row]]
                runner.train(flags.family, directory(flags.family, row, seed), seed, overrides)
    print(audit_table(flags.family), rl_table(flags.family, flags.seeds), sep="\n\n")
