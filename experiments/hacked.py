"""Does CLIP cosine alone go wrong here, as a real one does? Truth over 300 steps of it.

    .venv/bin/python -m experiments.hacked [--family NAME] [--seeds 0 1 2] [--table]

Trains what runs/ lacks (CLIP cosine alone, 300 steps), scores the adapter of every 50 steps by the
truth of the held-out scenes, and prints the table for experiments/README.md and captions in which
a wrong fact is new. The adapter after the last step is what is shown: choosing on the way by the
held-out scorer is a guard, and here nothing is to be guarded.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from experiments import runner
from experiments.main_result import alone
from experiments.truth_curve import Truth, truth_curve
from vizer_rl.config.run_dir import read_heldout
from vizer_rl.data.scenes import truth_of
from vizer_rl.evaluation.metrics.scene_facts.facts import score

STEPS, INTERVAL = 300, 50
TRUTH = "truth_curve.json"  # {step: facts}, the marker of a run that is done
SHOWN = 4  # captions a run
OVERRIDES = (
    *alone("clip_similarity"),
    *runner.LAST_ADAPTER,
    f"train.max_steps={STEPS}",
    f"train.save_steps={INTERVAL}",
    f"train.save_total_limit={STEPS // INTERVAL}",
)


def directory(family: str, seed: int) -> Path:
    return runner.directory("hacked", family, seed)


def train(family: str, seed: int) -> None:
    """Train and score a run, unless that was done."""
    folder = directory(family, seed)
    runner.train(family, folder, seed, OVERRIDES)
    if not runner.finished([folder], TRUTH):
        (folder / TRUTH).write_text(json.dumps(truth_curve(folder)))


def row(folder: Path) -> list[str]:
    """F1 and hallucinated: base, best F1 on the way with its step, and after the last step."""
    curve: dict[int, Truth] = {int(s): t for s, t in runner.read(folder, TRUTH).items()}
    base, best = curve[0], max(curve, key=lambda step: curve[step]["fact_f1"])
    last = curve[max(curve)]
    f1 = [f"{t['fact_f1']:.3f}" for t in (base, curve[best], last)]
    wrong = [t["hallucination_rate"] for t in (base, curve[best], last)]
    change = wrong[2] - wrong[0]
    return [folder.name, *f1, str(best), *(f"{w:.3f}" for w in wrong), f"{change:+.3f}"]


def captions(folder: Path) -> list[str]:
    """Captions that are wrong now and were not before, with the scene's true one."""
    truth = json.loads(truth_of(Path(read_heldout(folder)["source"])).read_text())
    lines = []
    for pair in runner.read(folder, "captions.jsonl"):
        scene = truth[pair["image_id"]]
        before, now = score(pair["base"], scene), score(pair["trained"], scene)
        if now.hallucinated and not before.hallucinated:
            lines.append(f"- {scene['caption']}: *{pair['base']}* → *{pair['trained']}*")
    return lines[:SHOWN]


def table(families: Sequence[str], seeds: Sequence[int]) -> str:
    """The Markdown table of every run that is there, then captions of each."""
    folders = [directory(family, seed) for family in families for seed in seeds]
    folders = runner.finished(folders, TRUTH)
    head = ["run", "F1: base", "best", "last", "best at", "hallucinated: base", "at best", "last"]
    lines = [runner.markdown([*head, "last over base"], map(row, folders))]
    for folder in folders:
        lines += ["", f"{folder.name} (true caption: *base* → *trained*):", "", *captions(folder)]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = runner.parser(__doc__, (), (0, 1, 2), "all")
    flags = parser.parse_args()
    families = [flags.family] if flags.family else runner.FAMILIES
    for seed in [] if flags.table else flags.seeds:
        for family in families:
            train(family, seed)
    print(table(families, flags.seeds))
