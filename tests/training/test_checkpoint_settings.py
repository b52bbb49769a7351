"""Generation settings of a checkpoint: they change nothing of a run and its captions."""

import json

import pytest
import torch
from safetensors.torch import load_file

from vizer_rl import cli
from vizer_rl.training import splits

from ..policy.test_generation_settings import greedy_checkpoint

CLOCK = ("time/", "step_time", "engine/", "train_")


def logged(directory):
    """What a run logs at each step, without what a clock measures."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    return [{k: v for k, v in step.items() if not k.startswith(CLOCK)} for step in steps]


@pytest.mark.slow
def test_a_run_is_that_of_a_checkpoint_without_settings(command, workplace, tmp_path, capsys):
    results = []
    image = str(splits.SCENES / "train" / "images" / "0000000.png")
    for n, model in enumerate(("embedded", greedy_checkpoint("qwen2vl", tmp_path / "qwen2vl"))):
        directory = command("qwen2vl", f"settings-{n}", f"policy.model={model}")
        capsys.readouterr()
        assert cli.main(["caption", "--run", str(directory), image]) == 0
        adapter = load_file(directory / "adapter" / "adapter_model.safetensors")
        captions = (directory / "captions.jsonl").read_text()
        results.append((capsys.readouterr().out, captions, logged(directory), adapter))
    *plain, weights = results[0]
    *with_settings, same_weights = results[1]
    assert with_settings == plain
    assert all(torch.equal(weights[name], same_weights[name]) for name in weights)
