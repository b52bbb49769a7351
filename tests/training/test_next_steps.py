"""The commands that are printed after a training."""

import json
import shlex

import pytest

from vizer_rl import cli
from vizer_rl.config.schema import Data, Policy, Run, Scorer
from vizer_rl.training import next_steps
from vizer_rl.training.next_steps import print_next_steps


def make_run(images=None, profile="scenes", **train):
    return Run(
        family="smolvlm",
        profile=profile,
        name="mine",
        policy=Policy(model="embedded"),
        data=Data(images=images),
        scorer=Scorer(train="embedded:a", heldout="embedded:b"),
        rewards={},
        train=train,
    )


@pytest.fixture
def printed(tmp_path, monkeypatch, capsys):
    """What is printed after a run that W&B tracked in this way, or not."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "runs" / "mine" / "wandb.json"
    path.parent.mkdir(parents=True)

    def show(run, **tracked):
        path.unlink(missing_ok=True)
        if tracked:
            path.write_text(json.dumps(tracked))
        print_next_steps(run)
        return capsys.readouterr().out

    return show


def test_next_steps_name_the_run_and_open_wandb(printed):
    online = printed(make_run(), mode="online", url="https://wandb.ai/me/x", dir="d")
    assert "https://wandb.ai/me/x" in online
    assert "wandb sync" not in online
    offline = printed(make_run(), mode="offline", url=None, dir="runs/my run")
    assert "wandb sync 'runs/my run'" in offline
    assert ".venv/bin/vizer-rl caption photo.jpg --run mine" in offline
    assert ".venv/bin/vizer-rl evaluate --run mine" in offline
    assert "make train-smolvlm PROFILE=full IMAGES=~/photos NAME=photos" in offline
    assert "W&B" not in printed(make_run())


def test_a_run_that_was_resumed_offline_is_synced_in_all_its_parts(printed, tmp_path):
    for day in ("20250102", "20250101"):
        (tmp_path / f"runs/mine/wandb/offline-run-{day}_000000-abc").mkdir(parents=True)
    shown = printed(make_run(), mode="offline", url=None, dir="d", id="abc")
    parts = [f"runs/mine/wandb/offline-run-2025010{day}_000000-abc" for day in (1, 2)]
    assert f"wandb sync {' '.join(parts)}\n" in shown


@pytest.mark.parametrize("profile", ["scenes", "full"])
def test_after_a_run_on_own_images_nobody_is_advised_to_do_what_is_done(profile, printed):
    shown = printed(make_run("photos", profile, max_steps=400), mode="offline", url=None, dir="w")
    assert "PROFILE=full" not in shown
    commands = [line.strip() for line in shown.splitlines() if line.startswith("    ")]
    vizer_rl = ".venv/bin/vizer-rl"
    assert commands == [
        ".venv/bin/wandb sync w",
        f"{vizer_rl} caption ~/more-photos --run mine",
        f"{vizer_rl} train runs/mine/config.yaml train.max_steps=800 --resume",
        f"{vizer_rl} evaluate --run mine",
        f"{vizer_rl} export --run mine --to adapter --out mine-lora",
    ]
    assert "is it better than prompts, best of 8 and captions as long" in shown
    for command in commands[1:]:
        cli.parse(shlex.split(command)[1:])


def test_where_a_wheel_is_installed_there_is_no_make_and_no_venv(printed, monkeypatch):
    monkeypatch.setattr(next_steps, "CHECKOUT", False)
    shown = printed(make_run(), mode="offline", url=None, dir="w")
    assert "    vizer-rl caption photo.jpg --run mine\n" in shown
    assert "    wandb sync w\n" in shown
    assert "make " not in shown
    assert ".venv" not in shown


def test_a_run_without_a_number_of_steps_goes_on_for_as_many_epochs(printed):
    assert "train.num_train_epochs=6 " in printed(make_run("photos"))
    assert "train.num_train_epochs=1 " in printed(make_run("photos", num_train_epochs=0.5))
