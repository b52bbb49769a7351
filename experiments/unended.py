"""Captions that come to no end: does learning survive a base that ends few of them?

    .venv/bin/python -m experiments.unended [--family smolvlm] [--seeds 0] [--only ROW …] [--table]

Trains what runs/ lacks, one after the other, through the real command, and prints the table for
experiments/README.md; --table only prints. Two ways to a base that ends few captions. `limit`:
`train.max_completion_length` is short; true captions have 12 tokens with their end, so it cuts
those too. `rare end`: the limit is 20, in which true captions fit, and the base's end token is made
rarer: what its output row adds to the logit, whatever the image, is lowered by some nats. The
policy can learn that back, as it would learn to come to an end.
"""

from pathlib import Path
from statistics import mean
from typing import Any

import torch

from experiments import runner
from vizer_rl.config.load import load_run
from vizer_rl.data.scenes import render, sample
from vizer_rl.policy import captioner, load

ROOM = 20  # tokens: the longest true caption has 19
LIMITS = {"smolvlm": (10, 6, 4), "qwen2vl": (10, 6, 4)}
NATS = {"smolvlm": (7.0, 8.2, 9.0, 10.0, 11.0), "qwen2vl": (7.0, 8.2, 9.0, 10.0, 11.0)}
STEPS = 10  # the first and the last ones that a column is the mean of
IMAGES = 64  # captioned to fit what the output row adds


def rows(family: str) -> dict[str, list[str]]:
    """Name of a row to its overrides."""
    limits = {
        f"limit {limit}": [f"train.max_completion_length={limit}"] for limit in LIMITS[family]
    }
    return {"default": []} | limits | {f"rare end {n:g}": rare(family, n) for n in NATS[family]}


def rare(family: str, nats: float) -> list[str]:
    """Overrides of a run from a base whose end token is rarer."""
    checkpoint = Path("runs") / f"unended-{family}-base-{nats:g}"
    return [f"policy.model={checkpoint}", f"train.max_completion_length={ROOM}"]


def write_base(family: str, overrides: list[str], nats: float) -> None:
    """Save the embedded policy with its end's logit lowered, unless it is there."""
    folder = Path(overrides[0].partition("=")[2])
    if folder.is_dir():
        return
    model, processor = load.load_policy(family, "embedded", dtype="float32")
    row = model.get_output_embeddings().weight.data[load.end_id(model, processor)]
    row -= nats * constant_direction(model, processor, family)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def constant_direction(model: Any, processor: Any, family: str) -> torch.Tensor:
    """(D,) the vector whose product with the policy's last hidden states is nearest to 1."""
    states: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: states.append(inputs[0].detach()[:, -1])
    )
    prompt = load_run(Path(__file__).parent / f"{family}.yaml", ["profile=scenes"]).data.prompt
    torch.manual_seed(0)
    images = [render(sample(6_000_000 + n)) for n in range(IMAGES)]
    captioner.caption(model, processor, images, prompt, max_new_tokens=ROOM, temperature=1.0)
    hook.remove()
    states_ND = torch.cat(states)
    ridge = 1e-3 * torch.eye(states_ND.shape[1])
    gram, sums = states_ND.T @ states_ND + ridge, states_ND.T @ torch.ones(len(states_ND), 1)
    return torch.linalg.solve(gram, sums)[:, 0]


def directory(family: str, row: str, seed: int) -> Path:
    return runner.directory("unended", family, runner.slug(row), seed)


def table(family: str, seeds: list[int]) -> str:
    """Unended share of the first and last steps' completions, and the captions before and after."""
    lines = []
    for row in rows(family):
        folders = runner.finished([directory(family, row, seed) for seed in seeds], "eval.json")
        if not folders:
            continue
        steps = [runner.read(folder, "metrics.jsonl") for folder in folders]
        first, last = unended_shares(steps)
        results = [runner.read(folder, "eval.json") for folder in folders]
        base, trained = ([result[part] for result in results] for part in ("base", "trained"))
        cells = [f"{first:.0%}", f"{last:.0%}", f"{mean(b['fact_f1']['value'] for b in base):.3f}"]
        lines.append([f"{row} ({len(folders)})", *cells, *runner.metric_cells(trained)])
    head = ["unended, first steps", "last steps", "F1 of the base", *runner.METRICS.values()]
    return runner.markdown([f"{family}: row (seeds)", *head], lines)


def unended_shares(runs: list[list[dict[str, float]]]) -> tuple[float, float]:
    """Mean share of completions without an end over the first and the last STEPS steps of runs."""
    shares = [[step["completions/clipped_ratio"] for step in steps] for steps in runs]
    return mean(mean(s[:STEPS]) for s in shares), mean(mean(s[-STEPS:]) for s in shares)


if __name__ == "__main__":
    parser = runner.parser(__doc__, rows("smolvlm") | rows("qwen2vl"), (0,), "smolvlm")
    flags = parser.parse_args()
    for seed in [] if flags.table else flags.seeds:
        for row in flags.only or rows(flags.family):
            overrides = rows(flags.family)[row]
            if row.startswith("rare"):
                write_base(flags.family, overrides, float(row.split()[-1]))
            overrides = [*overrides, *runner.LAST_ADAPTER]
            runner.train(flags.family, directory(flags.family, row, seed), seed, overrides)
    print(table(flags.family, flags.seeds))
