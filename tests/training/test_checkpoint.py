"""Checkpoints: whole or refused, cut metrics, changes listed, the lock, the guard of steps."""

import json
import os
import signal
import time

import pytest
import torch

from vizer_rl import cli, files
from vizer_rl.algorithms.grpo import GRPO
from vizer_rl.algorithms.step_guard import StepGuard
from vizer_rl.errors import UserError
from vizer_rl.training import checkpoint

from ..children import ended, start
from ..conftest import FEW_REWARDS, REPO, TINY

pytestmark = pytest.mark.faults

FILE = str(REPO / "experiments" / "smolvlm.yaml")
FEW = [*FEW_REWARDS, "data.heldout=4"]


def sealed(directory, step, content=b"weights"):
    aside = directory / ".saving"
    aside.mkdir(parents=True)
    (aside / "weights").write_bytes(content)
    files.seal(aside, directory / f"checkpoint-{step}")
    return directory / f"checkpoint-{step}"


def test_the_newest_whole_checkpoint_is_taken_and_the_damaged_named(tmp_path):
    heard = []
    old, new = sealed(tmp_path, 9), sealed(tmp_path, 10)
    os.utime(old)  # the clock says that the old one is newer: its number counts
    assert checkpoint.newest_whole(tmp_path, heard.append) == new
    assert heard == []
    (new / "weights").write_bytes(b"Weights")
    (tmp_path / "checkpoint-11").mkdir()  # half written by another program
    assert checkpoint.newest_whole(tmp_path, heard.append) == old
    assert "checkpoint-11" in heard[0]
    assert "not written to its end" in heard[0]
    assert "weights is not what was written" in heard[1]
    (old / "weights").unlink()
    with pytest.raises(UserError, match=r"no checkpoint .* is whole"):
        checkpoint.newest_whole(tmp_path, heard.append)


@pytest.mark.parametrize("region", range(8))
def test_a_byte_flipped_anywhere_is_noticed(region, tmp_path):
    folder = sealed(tmp_path, 1, bytes(range(256)) * 8)
    assert files.damage(folder) == ""
    data = bytearray((folder / "weights").read_bytes())
    data[region * 256 + 17] ^= 1
    (folder / "weights").write_bytes(data)
    assert "weights" in files.damage(folder)


def test_metrics_are_cut_back_to_the_checkpoint_wherever_the_file_ends(tmp_path):
    rows = [json.dumps({"step": step, "reward": step / 7}) for step in range(1, 6)]
    text = "\n".join(rows) + "\n"
    path = tmp_path / "metrics.jsonl"
    for end in range(len(text) + 1):
        path.write_text(text[:end])
        checkpoint.cut_metrics(path, tmp_path / "checkpoint-3")
        left = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        assert left == list(range(1, len(left) + 1))
        whole = sum(end > text.index(row) + len(row) - 1 for row in rows)
        assert len(left) == min(3, whole)


def test_a_second_run_on_a_directory_is_refused_until_the_first_ends(tmp_path):
    directory, (heard, says) = tmp_path / "run", os.pipe()

    def hold():
        with checkpoint.locked(directory):
            os.write(says, b"held")
            time.sleep(600)

    holder = start([], hold)
    os.close(says)  # so that nothing is heard of a child that ended
    assert os.read(heard, 4) == b"held"
    os.close(heard)
    with pytest.raises(UserError, match="in use"), checkpoint.locked(directory):
        pass
    os.kill(holder, signal.SIGKILL)
    assert ended(holder) == -signal.SIGKILL
    with checkpoint.locked(directory):
        (directory / "config.yaml").touch()
    assert list(directory.iterdir()) == [directory / "config.yaml"]


def test_a_run_that_was_stopped_says_how_to_go_on(command, workplace, capsys):
    directory = command("smolvlm", "halfway", *FEW, "train.save_steps=1")
    (directory / "eval.json").unlink()
    again = ["train", FILE, *TINY, *FEW, "name=halfway"]
    for flags in ([], ["--overwrite-finished"]):
        assert cli.main([*again, *flags]) == 2
        assert "was stopped after checkpoint-2: --resume" in capsys.readouterr().err
    assert cli.main([*again, "seed=1", "--resume"]) == 2
    refused = capsys.readouterr().err
    assert "seed: 0 -> 1" in refused
    assert "--accept-changes" in refused
    assert cli.main([*again, "train.max_steps=3", "--resume"]) == 0
    assert "train.max_steps: 2 -> 3" in capsys.readouterr().out
    rows = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [c.name for c in files.checkpoints(directory)] == ["checkpoint-3", "checkpoint-2"]


def model_and_optimizer(*gradients):
    model = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(())) for _ in gradients])
    for parameter, gradient in zip(model, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return model, torch.optim.AdamW(model.parameters(), lr=0.5)


@pytest.mark.parametrize(
    ("gradients", "loss"),
    [((1.0, float("nan")), 0.0), ((float("inf"), 1.0), 0.0), ((1.0, 1.0), float("nan"))],
)
def test_a_step_that_is_not_finite_moves_nothing_and_is_counted(gradients, loss):
    class State:
        global_step = 6

    metrics, heard = [], []
    guard = StepGuard(
        lambda *pair: metrics.append(pair), lambda: ["a.jpg", "a.jpg", "b.jpg"], heard.append
    )

    def step(gradients, loss):
        model, optimizer = model_and_optimizer(*gradients)
        guard.watch(torch.tensor(loss))
        guard.on_pre_optimizer_step(None, State, None, model=model, optimizer=optimizer)
        optimizer.step()
        return [p.item() for p in model]

    assert step((1.0, 1.0), 0.0) != [1.0, 1.0]
    assert metrics == heard == []
    assert step(gradients, loss) == [1.0, 1.0]
    assert metrics == [("engine/skipped_steps", 1.0)]
    assert heard == [
        "step 7 is skipped: its loss or gradients are not finite (images: a.jpg, b.jpg)"
    ]
    step((1.0, 1.0), 0.0)
    step(gradients, loss)
    step(gradients, loss)
    with pytest.raises(UserError, match="3rd in a row"):
        step(gradients, loss)


def test_nan_losses_skip_steps_and_the_third_in_a_row_ends_the_run(
    command, workplace, monkeypatch, capsys
):
    original, steps = GRPO.loss, []

    def loss(self, model, inputs):
        steps.append(self.state.global_step + 1)
        return original(self, model, inputs) * (float("nan") if steps[-1] > 2 else 1.0)

    monkeypatch.setattr(GRPO, "loss", loss)
    settings = [*FEW, "name=nan", "train.max_steps=9", "train.save_steps=1"]
    assert cli.main(["train", FILE, *TINY, *settings, "--overwrite"]) == 2
    assert "3rd in a row" in capsys.readouterr().err
    directory = workplace / "runs" / "nan"
    rows = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("engine/skipped_steps") for row in rows] == [None, None, 1.0, 2.0]
    assert files.damage(checkpoint.newest_whole(directory, print)) == ""


@pytest.mark.parametrize("call", ["seal", "_sync"])
def test_a_full_disk_ends_a_run_with_a_sentence_and_the_last_checkpoint(
    call, command, workplace, monkeypatch, capsys
):
    original, count = getattr(files, call), []

    def full(*args):
        count.append(args)
        if any("checkpoint-2" in str(a) for a in args):
            raise OSError(28, "No space left on device")
        return original(*args)

    monkeypatch.setattr(files, call, full)
    monkeypatch.setattr("vizer_rl.algorithms.resumable.seal", files.seal)
    settings = [*FEW, "name=full-disk", "train.save_steps=1"]
    assert cli.main(["train", FILE, *TINY, *settings, "--overwrite"]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "No space left on device" in printed
    assert "checkpoint-1 is intact" in printed
    directory = workplace / "runs" / "full-disk"
    assert checkpoint.newest_whole(directory, print).name == "checkpoint-1"
