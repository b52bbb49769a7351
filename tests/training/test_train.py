"""The main job through the real command, two steps long: what moves, stays and is written."""

import json
import re
import shlex
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

from vizer_rl import cli
from vizer_rl.assets import POLICIES
from vizer_rl.config.load import load_run
from vizer_rl.policy import captioner, load

from ..conftest import FEW_REWARDS, REPO, TINY
from .test_metrics_page import check_page
from .test_wandb_run import check_wandb

LABEL_FREE = {"mean_length", "heldout_score", "retrieval_1", "retrieval_5", "visual_dependence"}
LABEL_FREE |= {"repetition", "doubtful_rate", "doubtful_words"}
EVAL = LABEL_FREE | {
    "fact_f1",
    "fact_precision",
    "fact_recall",
    "hallucination_rate",
    "mean_length",
    "heldout_score",
}


@pytest.mark.parametrize("keep", ["best", pytest.param("last", marks=pytest.mark.slow)])
def test_the_adapter_kept_is_the_best_or_the_last(keep, command):
    ruin = ("train.learning_rate=1", "train.warmup_steps=0", f"monitor.keep={keep}")
    directory = command("smolvlm", f"keep-{keep}", *ruin, *FEW_REWARDS)
    kept, last = (
        load_file(directory / folder / "adapter_model.safetensors")
        for folder in ("adapter", "checkpoint-2")
    )
    assert all(torch.equal(last[name], w) for name, w in kept.items()) == (keep == "last")


@pytest.mark.parametrize("family", sorted(POLICIES))
def test_two_steps_move_the_adapter_and_nothing_else(family, command, spied):
    directory = command(family, f"two-{family}", "data.heldout=12")
    adapters = [n for n, (_, _, learns) in spied.items() if learns]
    assert adapters
    assert all("lora_" in n and "vision" not in n and "visual" not in n for n in adapters)
    assert all(not torch.equal(a, b) for n, (a, b, _) in spied.items() if n in adapters)
    assert all(torch.equal(a, b) for n, (a, b, _) in spied.items() if n not in adapters)
    result = json.loads((directory / "eval.json").read_text())
    assert result["n_images"] == 12
    for side in ("base", "trained"):
        assert set(result[side]) == EVAL
        assert all(v["low"] <= v["value"] <= v["high"] for v in result[side].values())
    steps = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [s["step"] for s in steps] == [1, 2]
    names = ("self_retrieval", "clip_similarity", "alignment", "repetition", "length")
    assert all({f"reward/{n}" for n in names} | {"reward", "time/step"} <= set(s) for s in steps)
    rows = [json.loads(line) for line in (directory / "captions.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    assert all({"image_id", "base", "trained", "truth"} <= set(r) for r in rows)
    again = load_run(directory / "config.yaml", [])
    assert again.name == f"two-{family}"
    check_page(directory, "grpo")
    assert (directory / "adapter" / "adapter_model.safetensors").exists()


def weights(directory):
    return load_file(directory / "checkpoint-2" / "adapter_model.safetensors")


def test_training_never_opens_the_truth_and_does_not_need_it(command, workplace, monkeypatch):
    opened = []
    watching = [True]

    def hook(event, args):
        if watching[0] and event == "open" and isinstance(args[0], str):
            opened.append(args[0])

    sys.addaudithook(hook)
    from vizer_rl.training import train

    with monkeypatch.context() as patch:
        patch.setattr(
            train.evaluate, "evaluate", lambda directory, **_: watching.__setitem__(0, False)
        )
        with_truth = weights(command("smolvlm", "truth"))
    assert any(path.endswith(".png") for path in opened)
    reads = [p for p in opened if "scenes.json" in p]
    assert not reads, "the trainer's process opened the truth"
    kept = workplace / "kept"
    for folder in (workplace / "data/scenes").glob("*/truth"):
        shutil.move(folder, kept / folder.parent.name)
    without = weights(command("smolvlm", "no-truth"))
    for folder in kept.iterdir():
        shutil.move(folder, workplace / "data/scenes" / folder.name / "truth")
    assert with_truth.keys() == without.keys()
    assert all(torch.equal(with_truth[n], without[n]) for n in with_truth)


@pytest.mark.slow
def test_another_seed_gives_other_weights(command):
    one, two = (weights(command("smolvlm", f"seed-{s}", f"seed={s}")) for s in (0, 1))
    assert any(not torch.equal(one[n], two[n]) for n in one)


def test_own_images_need_no_truth_and_bad_files_never_stop_a_run(command, workplace, capsys):
    photos = workplace / "photos"
    photos.mkdir(exist_ok=True)
    for image in sorted((workplace / "data/scenes/train/images").glob("*.png"))[:40]:
        shutil.copy(image, photos)
    (photos / "empty.jpg").touch()
    (photos / "text.png").write_text("not an image")
    directory = command("smolvlm", "own", f"data.images={photos}", "data.heldout=12", *FEW_REWARDS)
    skipped = (directory / "skipped.jsonl").read_text()
    assert "empty.jpg" in skipped
    assert "text.png" in skipped
    result = json.loads((directory / "eval.json").read_text())
    assert result["n_images"] == 8
    assert set(result["trained"]) == LABEL_FREE
    assert_next_steps_run(capsys, directory, photos)


def assert_next_steps_run(capsys, directory, photos):
    """Every command printed after a run on one's own images, with a folder that is there."""
    shown = capsys.readouterr().out
    lines = [line.strip() for line in shown[shown.index("Next:") :].splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith(".venv/bin/vizer-rl ")]
    assert [words[0] for words in commands] == ["caption", "train", "evaluate", "export"]
    for words in commands:
        assert cli.main([str(photos) if "photos" in word else word for word in words]) == 0
    steps = (directory / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(step)["step"] for step in steps] == [1, 2, 3, 4]
    shown = capsys.readouterr().out
    for image in photos.iterdir():  # captioned, or named with the reason
        assert shown.count(image.name) >= 1, image.name
    assert shown.count("Left out: Cannot use image") == 2


def logged(directory):
    """The rows of metrics.jsonl without what the clock or the caches of a process decide."""
    clock = re.compile(r"time/.*|step_time|engine/tokens_per_second|engine/vision_cache_hit_rate")
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not clock.fullmatch(k)} for row in rows]


@pytest.mark.parametrize(("algorithm", "stop"), [("grpo", 3), ("ppo", 3)])
@pytest.mark.slow
def test_a_resumed_run_is_the_run_that_never_stopped_to_the_bit(algorithm, stop, command):
    """It stops in its second epoch, PPO also within a rollout."""
    same = [
        f"algorithm={algorithm}",
        "monitor.interval=1",
        "data.limit=16",
        "train.per_device_train_batch_size=64",
    ]
    same += ["train.lr_scheduler_type=constant"]  # the others look ahead to max_steps
    whole = command("smolvlm", "whole", *same, f"train.max_steps={2 * stop}")
    command("smolvlm", "parts", *same, f"train.max_steps={stop}")
    parts = command("smolvlm", "parts", *same, f"train.max_steps={2 * stop}", flags=("--resume",))
    assert [row["step"] for row in logged(parts)] == list(range(1, 2 * stop + 1))
    assert logged(parts) == logged(whole)
    last = f"checkpoint-{2 * stop}/adapter_model.safetensors"
    for file in (last, "adapter/adapter_model.safetensors"):
        assert (parts / file).read_bytes() == (whole / file).read_bytes(), file


def test_wandb_is_recorded_offline_without_a_login(command, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nowhere")
    directory = command("smolvlm", "offline", "tracking.wandb=auto")
    about = json.loads((directory / "wandb.json").read_text())
    assert about["mode"] == "offline"
    assert list(directory.glob("wandb/offline-run-*/*.wandb"))
    assert check_wandb(directory).config["algorithm"] == "grpo"
    command("smolvlm", "offline", "tracking.wandb=auto", "train.max_steps=3", flags=("--resume",))
    resumed = check_wandb(directory)
    assert resumed.id == about["id"]
    assert [row["train/global_step"] for row in resumed.history] == [3]


def test_an_existing_run_is_refused_and_left_alone(command, workplace, capsys):
    directory = command("smolvlm", "mine", "train.max_steps=1", *FEW_REWARDS)
    before = {p: p.stat().st_mtime_ns for p in directory.rglob("*")}
    file = str(REPO / "experiments/smolvlm.yaml")
    assert cli.main(["train", file, *TINY, *FEW_REWARDS, "name=mine"]) == 2
    printed = capsys.readouterr().err
    assert "--overwrite" in printed
    assert "--resume" in printed
    assert before == {p: p.stat().st_mtime_ns for p in directory.rglob("*")}


@pytest.mark.parametrize("family", sorted(POLICIES))
def test_special_tokens_are_never_sampled(family, workplace):
    from PIL import Image

    model, processor = load.load_policy(family, "embedded", dtype="float32")
    forbidden = load.forbidden_ids(model, processor)
    image = model.config.image_token_id
    assert image in forbidden
    assert not set(forbidden) & set(load.eos_ids(model, processor))
    model.get_output_embeddings().weight.data.zero_()  # every token is as likely as another
    torch.manual_seed(0)
    pictures = [Image.new("RGB", (96, 96))] * 16
    captions = captioner.caption(
        model, processor, pictures, "Describe the image.", max_new_tokens=32, temperature=1.0
    )
    tokens = {i for c in captions for i in c.ids}
    assert len(tokens) > 100
    assert not tokens & set(forbidden)
