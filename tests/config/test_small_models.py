"""SmolVLM-256M and -500M: a run file of their own, what it adds up to, and that make takes it."""

import subprocess

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from vizer_rl.config.load import load_run

from ..checkpoints import smolvlm_small_config
from ..conftest import REPO

FILE = REPO / "experiments" / "smolvlm-256m.yaml"
BYTES = {"256M": 513e6, "500M": 1.02e9}  # of the published files, in bfloat16


def test_the_small_models_run_file_keeps_the_budget_in_smaller_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save("a.png")
    run = load_run(FILE, ["data.images=a.png"], cuda=False)
    assert (run.profile, run.name) == ("full", "smolvlm-256m")
    assert run.policy.model == "HuggingFaceTB/SmolVLM-256M-Base"
    train = run.train
    captions = train["per_device_train_batch_size"] * train["gradient_accumulation_steps"]
    images = captions // train["num_generations"]
    assert images == 4
    assert train["learning_rate"] * images * train["max_steps"] == pytest.approx(0.3)
    assert not train.get("bf16")
    assert train["max_completion_length"] >= 1.3 * run.rewards["length"]["longest"] * 1.3
    assert (
        train["max_steps"] % run.monitor.interval == train["max_steps"] % train["save_steps"] == 0
    )
    for word in ("# Question:", "# Command:", "# Expected:", "# Time:"):
        assert word in FILE.read_text()


@pytest.mark.parametrize("size", sorted(BYTES))
def test_the_small_models_have_the_size_of_their_files(size):
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(smolvlm_small_config(size))
    count = sum(p.numel() for p in model.parameters())
    assert 2 * count == pytest.approx(BYTES[size], rel=0.01)


@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("HuggingFaceTB/SmolVLM-256M-Base", "smolvlm-256m"),
        ("~/models/SmolVLM-500M-Instruct", "smolvlm-256m"),
        ("HuggingFaceTB/SmolVLM-Base", "smolvlm"),
        ("", "smolvlm"),
    ],
)
def test_make_takes_the_run_file_of_the_model(model, file):
    command = ["make", "-n", "train-smolvlm", f"MODEL={model}"]
    lines = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout
    assert f" train experiments/{file}.yaml " in lines
