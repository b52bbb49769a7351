"""The tables of experiments/README.md from fake run directories, cell by cell."""

import json

import numpy as np

from experiments import compare_algorithms, main_result, reward_ablation, unended
from experiments.runner import METRICS

from .conftest import estimates


def test_main_result(write):
    for seed, value, seconds in ((0, 0.5, 30), (1, 0.7, 90)):
        result = {"base": estimates(0.2), "trained": estimates(value), "truth_mean_length": 9.54}
        steps = [{"time/step": seconds}] * 2
        write(f"smolvlm-clip_similarity-{seed}", eval=result, metrics=steps)
    write("smolvlm-default-0", metrics=[{"time/step": 1}])  # was cut off: not in the table
    cell, base = "0.600 [0.400, 0.900]", "0.200 [0.100, 0.400]"
    assert main_result.table(["smolvlm", "qwen2vl"], 3).splitlines() == [
        "| family, recipe (seeds) | F1 | precision | recall | hallucinated | words | held-out "
        "| minutes |",
        "|---|---|---|---|---|---|---|---|",
        f"| smolvlm, base (true captions: 9.5 words) | {base} | {base} | {base} | {base} "
        f"| 0.2 [0.1, 0.4] | {base} |",
        f"| smolvlm, clip_similarity alone (2) | {cell} | {cell} | {cell} | {cell} "
        f"| 0.6 [0.4, 0.9] | {cell} | 2.0 |",
    ]


def test_reward_ablation_what_rl_changed(write):
    write("suite-smolvlm-default-without-self-retrieval-0", eval={"change": estimates(0.3)})
    write("suite-smolvlm-default-without-self-retrieval-2", eval={"change": estimates(-0.1)})
    write("suite-smolvlm-default-1")
    cell = "+0.100 [-0.200, +0.500]"
    assert reward_ablation.rl_table("smolvlm", [0, 1, 2]).splitlines() == [
        "| smolvlm: rewards (seeds) | F1 | precision | recall | hallucinated | words | held-out |",
        "|---|---|---|---|---|---|---|",
        f"| default without self_retrieval (2) | {cell} | {cell} | {cell} | {cell} "
        f"| +0.1 [-0.2, +0.5] | {cell} |",
    ]


def test_reward_ablation_what_the_audit_says(write):
    assert reward_ablation.audit_table("smolvlm") == "smolvlm: not audited yet"
    wins = {"length": {"value": 0.5, "tied": 0.25}, "sum": {"value": 0.875, "tied": 0.0}}
    audit = {
        "attacks": {"empty": {"wins": wins}, "noun swapped": {"wins": wins | {"length": None}}},
        "rewards": ["length"],
        "truth": {"within": {"length": {"value": 0.29}, "sum": None}},
        "milliseconds": {"length": 0.126},
    }
    step = {"time/reward/length": 0.5, "time/step": 2.0}
    write("suite-smolvlm-all-0", audit=audit, metrics=[{}, step, step])  # the first warms up
    assert reward_ablation.audit_table("smolvlm").splitlines() == [
        "| smolvlm: reward | empty | noun swapped | truth, within image | ms a caption "
        "| of the step |",
        "|---|---|---|---|---|---|",
        "| length | 0.50 =0.25 |  | +0.29 | 0.13 | 25.0% |",
        "| sum | 0.88 | 0.88 |  |  |  |",
    ]


def test_reward_ablation_has_each_reward_alone_left_out_and_added():
    recipes = reward_ablation.recipes()
    assert recipes["random alone"] == [
        "recipe=null",
        "rewards.self_retrieval=null",
        "rewards.clip_similarity=null",
        "rewards.alignment=null",
        "rewards.random.weight=1",
        "rewards.gate.weight=0.3",
    ]
    assert recipes["default"] == []
    assert recipes["default without certainty"] == ["recipe=null"]
    assert recipes["default without length"] == ["rewards.length=null"]
    assert recipes["default with gate"] == ["rewards.gate.weight=0.3"]
    assert len(recipes) == 19


def test_compare_algorithms(write, tmp_path, monkeypatch):
    """Rows whose F1 per image is 0, ½ and 1: what is over the control and how far it came."""
    assert compare_algorithms.table("alg", "smolvlm", [0]) == "smolvlm: no run is there yet"
    images = tmp_path / "images"
    images.mkdir()
    truth_of = tmp_path / "truth.json"
    truth_of.write_text(json.dumps({str(i): {"caption": "a"} for i in range(4)}))
    monkeypatch.setattr(compare_algorithms, "truth_of", lambda root: truth_of)
    monkeypatch.setattr(
        compare_algorithms,
        "columns",
        lambda captions, truth: {m: np.array([float(c) for c in captions]) for m in METRICS},
    )
    rows = (
        ("base", 0, 0),
        ("vizer-g", 0, 0.25),
        ("grpo", 0, 0.5),
        ("grpo", 1, 1),
        ("oracle", 0, 1),
    )
    for row, seed, f1 in rows:
        write(
            f"alg-smolvlm-{row}-{seed}",
            heldout={"source": str(images)},
            captions=[{"image_id": str(i), "trained": str(f1)} for i in range(4)],
            eval={"trained": {"heldout_score": {"value": f1 / 2}}},
            cost={"seconds": 60 + 60 * seed, "captions": 6400},
        )
    head, line, *table = compare_algorithms.table("alg", "smolvlm", [0, 1]).splitlines()
    assert head == (
        "| smolvlm (seeds) | precision | recall | F1 | hallucinated | words | held-out "
        "| F1 over control | closed | captions | minutes |"
    )
    assert line == "|---" * 11 + "|"

    def row(title, f1, heldout, over, closed, minutes):
        value = f"{f1} [{f1}, {f1}]"
        cells = [title, *[value] * 4, "1.0 [1.0, 1.0]", heldout, over, closed, "6400", minutes]
        return "| " + " | ".join(cells) + " |"

    assert table == [
        row("base (1)", "0.000", "0.000", "-0.250 [-0.250, -0.250]", "0%", "1.0"),
        row("ViZer_G (1)", "0.250", "0.125", "control", "25%", "1.0"),
        row("GRPO (2)", "0.750", "0.375", "+0.500 [+0.500, +0.500]", "75%", "1.5"),
        row(
            "oracle (SFT on truth) (1)", "1.000", "0.500", "+0.750 [+0.750, +0.750]", "100%", "1.0"
        ),
        "",
        "F1 of GRPO over base +0.750 [+0.750, +0.750], ViZer_G +0.500 [+0.500, +0.500]",
    ]


def test_compare_algorithms_samples_as_many_captions_as_grpo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = compare_algorithms.directory("alg", "smolvlm", "PPO", 1)
    assert str(folder) == "runs/alg-smolvlm-ppo-1"
    ppo = compare_algorithms.arguments("smolvlm", "PPO", folder, 1, ["train.max_steps=10"])
    grpo = compare_algorithms.arguments("smolvlm", "GRPO", folder, 1, ["train.max_steps=10"])
    assert ppo[-2:] == ["train.max_steps=10", "train.max_steps=20"], "two epochs a rollout"
    assert grpo[-2:] == ["train.max_steps=10", "train.max_steps=10"]
    base = compare_algorithms.arguments("smolvlm", "base", folder, 1, [])
    assert base[1:] == ["profile=scenes", "name=alg-smolvlm-ppo-1", "seed=1", "tracking.wandb=off"]


def test_unended(write):
    """The share of the first and of the last ten steps, and the captions before and after."""
    steps = [{"completions/clipped_ratio": share} for share in [0.5] * 10 + [0.9] + [0.1] * 10]
    write(
        "unended-smolvlm-rare-end-9-0",
        metrics=steps,
        eval={"base": estimates(0.5), "trained": estimates(0.75)},
    )
    head, line, row = unended.table("smolvlm", [0, 1]).splitlines()
    assert head == (
        "| smolvlm: row (seeds) | unended, first steps | last steps | F1 of the base | F1 "
        "| precision | recall | hallucinated | words | held-out |"
    )
    assert line == "|---" * 10 + "|"
    value = "0.750 [0.650, 0.950]"
    cells = ["rare end 9 (1)", "50%", "10%", "0.500", *[value] * 4, "0.8 [0.7, 0.9]", value]
    assert row == "| " + " | ".join(cells) + " |"
