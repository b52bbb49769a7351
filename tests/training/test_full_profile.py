"""The full profile without its weights: real processors and configs, random weights, photos."""

import json
import os
import shlex
import subprocess
import sys

import pytest
import yaml

from vizer_rl import cli

from ..checkpoints import FOLDERS, PHOTOS, checkpoint, published
from ..conftest import FIXTURES, REPO

SETTINGS = [
    "data.heldout=2",
    "monitor.images=2",
    "scorer.train=embedded:a",
    "scorer.heldout=embedded:b",
    "tracking.wandb=off",
    "rewards.self_retrieval.hard=8",
    "rewards.self_retrieval.random=8",
    "rewards.alignment.steps=5",
    "data.limit=20",
    "train.max_steps=2",
    "train.warmup_steps=0",
    "train.num_generations=2",
    "train.per_device_train_batch_size=2",
    "train.gradient_accumulation_steps=1",
    "train.max_completion_length=6",
]

pytestmark = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="../shared/fixtures (real processors, photographs) is not here"
)


def train(family, model, workplace, *more):
    name = f"full-{family}"
    settings = ["profile=full", f"name={name}", f"policy.model={model}", f"data.images={PHOTOS}"]
    file = str(REPO / "experiments" / f"{family}.yaml")
    assert cli.main(["train", file, *settings, *SETTINGS, *more, "--overwrite"]) == 0
    check_run(workplace / "runs" / name)


def check_run(directory):
    """Two steps were logged, an adapter was kept and evaluated on two images."""
    steps = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [s["step"] for s in steps] == [1, 2]
    assert json.loads((directory / "eval.json").read_text())["n_images"] == 2
    assert (directory / "adapter" / "adapter_model.safetensors").is_file()


@pytest.fixture
def shell(tmp_path):
    """Runs a command in a copy of the repository whose .venv is this Python, set up already."""
    for name in ("Makefile", "experiments", "rewards", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).symlink_to(REPO / name)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "setup").write_bytes((REPO / "scripts" / "setup").read_bytes())
    commands = {"python": f'"{sys.executable}"', "vizer-rl": f'"{sys.executable}" -m vizer_rl'}
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name, command in commands.items():
        path = tmp_path / ".venv" / "bin" / name
        path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        path.chmod(0o755)
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "MFLAGS"}
    env |= {"PYTHONPATH": str(REPO), "PYTHON": "false", "COLUMNS": "200"}  # false: never install

    def run(*command):
        return subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )

    # what scripts/setup writes once it has installed what these two files say
    files = "$(cat requirements.lock pyproject.toml | cksum)"
    python = "{}.{}".format(*sys.version_info)
    run("sh", "-c", f'cd scripts/.. && echo "$PWD {python} {files}" >.venv/.installed')
    return run


@pytest.fixture
def photos(tmp_path):
    """A folder of thirty photographs and of a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in sorted(PHOTOS.glob("*.jpg"))[:30]:
        (folder / photo.name).symlink_to(photo)
    (folder / "broken.jpg").write_text("no picture")
    return folder


@pytest.mark.slow
def test_two_steps_of_the_other_family(workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(workplace)
    published("qwen2vl", tmp_path, full_width=False)
    train("qwen2vl", tmp_path, workplace, "monitor.audit=false")


def test_from_make_to_the_final_table_and_a_folder_of_captions(
    shell, photos, tmp_path, monkeypatch, capsys
):
    """What a user types; the model is tiny, the rest is the profile's."""
    published("smolvlm", tmp_path / "model", full_width=False)
    given, args = ["IMAGES=photos", "MODEL=model", "NAME=mine"], " ".join(SETTINGS)
    result = shell("make", "train-smolvlm", "PROFILE=full", *given, f"ARGS={args}")
    assert result.returncode == 0, result.stdout + result.stderr
    directory = tmp_path / "runs" / "mine"
    check_run(directory)
    settings = yaml.safe_load((directory / "config.yaml").read_text())
    assert settings["policy"]["dtype"] == "bfloat16"
    assert settings["train"]["bf16"]
    assert not settings["train"]["gradient_checkpointing"]  # its header: for cards of 12 GB
    for name in ("environment.json", "heldout.json", "captions.jsonl", "audit.html"):
        assert (directory / name).is_file(), name
    assert "broken.jpg" in (directory / "skipped.jsonl").read_text()
    shown, _, steps = result.stdout.rpartition("Next:")
    table = shown.partition("Before and after, on 2 held-out images")[2]
    assert all(word in table for word in ("base", "trained", "change", "held-out score")), shown
    commands = [shlex.split(line) for line in steps.splitlines() if line.startswith("    ")]
    (caption,) = (words for words in commands if words[1] == "caption")
    assert caption == [".venv/bin/vizer-rl", "caption", "~/more-photos", "--run", "mine"]
    monkeypatch.chdir(tmp_path)
    photos.rename(tmp_path / "more-photos")
    for photo in sorted((tmp_path / "more-photos").glob("0*.jpg"))[2:]:
        photo.unlink()
    assert cli.main([caption[1], str(tmp_path / "more-photos"), *caption[3:]]) == 0
    shown = capsys.readouterr().out
    assert shown.count(".jpg") == 3, shown
    assert "Left out" in shown
    assert "image tokens: " in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FOLDERS))
def test_two_steps_of_the_command_at_the_real_width(family, workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(workplace)
    published(family, tmp_path, few_tokens=False)
    train(family, tmp_path, workplace)


@pytest.mark.slow
def test_two_steps_with_tiles(workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(workplace)
    checkpoint("smolvlm", tmp_path, real_width=False)
    train("smolvlm", tmp_path, workplace, "policy.image_splitting=true")


@pytest.mark.gpu
@pytest.mark.parametrize("family", sorted(FOLDERS))
def test_two_steps_in_bf16_on_the_gpu(family, workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(workplace)
    published(family, tmp_path, few_tokens=False)
    train(family, tmp_path, workplace)
