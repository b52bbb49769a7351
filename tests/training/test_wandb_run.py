"""What W&B is sent, read back from the run file: curves, pictures, tables, alarms, adapter."""

import json
import os
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import wandb
from PIL import Image

from vizer_rl.algorithms.last_rollout import RolloutRecord
from vizer_rl.training import wandb_log
from vizer_rl.training.alarms import Alarm
from vizer_rl.training.heldout_monitor import HeldoutResult
from vizer_rl.training.heldout_scores import HeldoutScores
from vizer_rl.training.rollout_table import flags, rollout_table
from vizer_rl.training.wandb_media import LONGEST_SIDE, SENT, Budget, RunMedia, jpeg, sent_bytes

from .. import wandb_file

SUMMARY = {"train_runtime", "train_loss", "total_flos"}


def check_wandb(directory):
    """The newest W&B run of a training that ended: all that docs/wandb.md promises is in it."""
    run, about = wandb_file.read(directory), json.loads((directory / "wandb.json").read_text())
    assert run.id == about["id"]
    assert run.axes["*"] == "train/global_step"
    assert all("train/global_step" in row for row in run.history)
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    by_step = {row["train/global_step"]: row for row in run.history}
    assert len(by_step) == len(run.history), "a step has two rows"
    for row in (row for row in rows if row["step"] in by_step):
        assert wandb_log.grouped(row).items() <= by_step[row["step"]].items()
    assert not [key for key in run.keys if key.startswith(("train/reward/", "train/heldout/"))]
    assert set(run.summary) >= SUMMARY
    assert run.config["environment"] == json.loads((directory / "environment.json").read_text())
    assert {"family", "algorithm", "rewards", "learning_rate", "peft_config"} <= set(run.config)
    check_gallery(run)
    check_tables(run, rows)
    (adapter,) = run.artifact("model")
    assert {"adapter_model.safetensors", "adapter_config.json"} <= set(adapter)
    for name, path in adapter.items():
        assert path.read_bytes() == (directory / "adapter" / name).read_bytes()
    assert all((run.folder / name).is_file() for name in run.files)
    local = [path for artifact in run.artifacts for path in wandb_file.local_paths(artifact)]
    assert not [path for path in local if path.is_absolute() or not path.is_file()]
    assert sent_bytes(directory, *SENT) < 25e6
    return run


def check_gallery(run):
    galleries = run.logged("heldout/gallery")
    assert galleries
    for gallery in galleries:
        assert gallery["_type"] == "images/separated"
        assert gallery["count"] == len(gallery["captions"]) == 4
        for name in gallery["filenames"]:
            with Image.open(run.folder / name) as picture:
                assert picture.format == "JPEG"
                assert max(picture.size) <= LONGEST_SIDE
    for text in galleries[-1]["captions"]:
        score, _, base, rewards = text.splitlines()
        assert "held-out 0." in score
        assert "(base 0." in score
        assert base.startswith("base: ")
        assert "clip_similarity " in rewards


def check_tables(run, rows):
    assert {run.logged(f"rollout/{key}")[0]["_type"] for key in ("reward", "length")} == {
        "histogram"
    }
    (first, *_), (files, *_) = run.logged("rollout/captions"), run.artifact("captions")
    assert first["_type"] == "table-file"
    table = json.loads(files["rollout-captions.table.json"].read_text())
    column = dict(zip(table["columns"], zip(*table["data"], strict=True), strict=True))
    row = next(row for row in rows if row["step"] == column["step"][0])
    for key in [key for key in column if key.startswith("reward/")]:
        judged = [value for value in column[key] if value is not None]
        assert np.mean(judged) == pytest.approx(row[key], abs=1e-4)
        assert key.replace("reward/", "share/") in column
    assert {"image_id", "caption", "advantage", "heldout", "ended", "length", "flags"} <= {*column}
    sizes = zip(*(map(abs, v) for k, v in column.items() if k.startswith("share/")), strict=True)
    assert all(sum(size) == pytest.approx(1, abs=1e-4) or sum(size) == 0 for size in sizes)
    assert np.mean(column["length"]) == pytest.approx(row["completions/mean_length"])
    for cell in column["image"]:
        assert cell["_type"] == "image-file"
        assert files[cell["path"]].read_bytes()[:3] == b"\xff\xd8\xff"


def record(**changes):
    """A rollout of two groups of two; in the second nothing varies."""
    fields = {
        "image_ids": ("x", "x", "y", "y"),
        "captions": ("a dog", "a\x1bcat", "", ""),
        "lengths": (3, 3, 1, 8),
        "ended": (True, True, True, False),
        "reward_names": ("good", "ended"),
        "weights": (1.0, 1.0),
        "content": (True, False),
        "gates": (False, True),
        "group": 2,
        "rewards_NK": torch.tensor([[0.5, 0.0], [0.25, 0.0], [0.0, 0.0], [torch.nan, -1.0]]),
        "advantages_N": torch.tensor([1.0, -1.0, 0.0, 0.0]),
    }
    return RolloutRecord(**fields | changes)


def result(step, captions=("a cat", "a dog"), cosines=(0.25, 0.75)):
    score = sum(cosines) / 2
    fields = step, ("p", "q"), captions, torch.tensor(cosines), score, True
    return HeldoutResult(*fields, HeldoutScores())


@pytest.fixture(scope="module")
def unit(tmp_path_factory):
    """A run of four steps without a training: its directory, what logged it and was printed."""
    directory = tmp_path_factory.mktemp("runs") / "unit"
    (directory / "adapter").mkdir(parents=True)
    (directory / "adapter" / "heldout.json").write_text('{"score": 0.5}')
    (directory / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (directory / "audit.html").write_text("<html>audit</html>")
    (directory / "report.html").write_text("<html>" + "x" * 3000 + "</html>")
    home, printed = tmp_path_factory.mktemp("home"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory.parent)
        for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
            patch.setenv(name, str(home / name))
        settings = wandb.Settings(silent=True, console="off")
        wandb.init(project="p", dir=directory, mode="offline", settings=settings)
        picture = jpeg(Image.new("RGBA", (1000, 500), "red"))
        log = wandb_log.WandbLog(
            wandb_log.open_media(Path("unit"), 0.2),
            wandb_log.Gallery(
                ["q", "p"],
                [picture, picture],
                lambda captions: {"good": [0.5, None]},
                directory / "wandb" / "base_captions.json",
            ),
            record,
            lambda record: torch.tensor([[3.0, 1.0], [-3.0, -1.0], [0.0, 0.0], [0.0, 0.0]]),
            lambda ids, captions: torch.tensor([0.1, 0.4, 0.2, 0.2]),
            lambda image_id: picture,
            directory,
            printed.append,
        )
        state = SimpleNamespace(
            max_steps=4, global_step=0, is_world_process_zero=True, trial_name=None,
            is_hyper_param_search=False,
        )  # fmt: skip
        args = SimpleNamespace(
            to_dict=lambda: {"learning_rate": 1.0}, run_name="unit", output_dir=""
        )
        log.evaluated(result(0))
        log.on_train_begin(args, state, None, model=None)
        for step in range(1, 5):
            log.row({"step": step, "reward": 0.5, "loss": None, "time/step": 1.0})
        log.evaluated(result(4, ("a cat", "two dogs"), (0.5, 0.5)))
        sentence = "reward rose while the held-out scorer fell"
        log.alarm(Alarm(4, "held-out drop", sentence, 0.5, 0.6, "warn"))
        log.on_log(args, state, None, logs={"train_runtime": 3.0})
        state.global_step = 4
        log.on_train_end(args, state, None)
        wandb_log.send_page("pages/report", Path("unit/report.html"), Path("unit"), 0.2, print)
        log.media.log_page("pages/too_large", 4, huge(directory))
        wandb.finish()
        left = [p for p in home.rglob("*") if p.is_file() and p.suffix != ".log"]
        assert not left, "in the user's home"
    return directory, log, printed


def huge(directory):
    path = directory / "huge.html"
    path.write_text("x" * 200_000)
    return path


def test_a_gallery_shows_the_caption_before_and_now_with_their_scores(unit):
    first, last = wandb_file.read(unit[0]).logged("heldout/gallery")
    assert first["captions"] == [
        "step 0: held-out 0.750\na dog\ngood 0.50",
        "step 0: held-out 0.250\na cat\ngood –",
    ]
    assert last["captions"] == [
        "step 4: held-out 0.500 (base 0.750)\ntwo dogs\nbase: a dog\ngood 0.50",
        "step 4: held-out 0.500 (base 0.250)\na cat\nbase: a cat\ngood –",
    ]
    assert (first["width"], first["height"]) == (384, 192)


def test_alarms_pages_adapter_and_summary_are_in_the_run(unit):
    directory, _, _ = unit
    run = wandb_file.read(directory)
    assert run.alerts == [("held-out drop, step 4", "reward rose while the held-out scorer fell")]
    for name in ("audit", "report"):
        (page,) = run.logged(f"pages/{name}")
        text = (run.folder / page["path"]).read_text()
        assert text == (directory / f"{name}.html").read_text()
    assert run.summary["train_runtime"] == 3.0
    assert run.config["learning_rate"] == 1.0
    (adapter,) = run.artifact("model")
    assert (directory.parent / adapter["adapter_model.safetensors"]).read_bytes() == b"weights"
    assert run.history[0]["heldout/score"] == 0.5
    assert "train/loss" not in run.keys


def test_a_run_copied_elsewhere_has_all_its_pictures(unit, tmp_path, monkeypatch):
    directory, _, _ = unit
    os.rename(directory, tmp_path / "unit")
    monkeypatch.chdir(tmp_path)
    try:
        run = wandb_file.read(Path("unit"))
        assert len(run.files) > 5
        assert all((run.folder / name).is_file() for name in run.files)
        local = [path for artifact in run.artifacts for path in wandb_file.local_paths(artifact)]
        assert len(local) > 5
        assert all(path.is_file() and not path.is_absolute() for path in local)
    finally:
        os.rename(tmp_path / "unit", directory)


def test_what_is_sent_stays_within_the_budget_and_what_does_not_fit_is_counted(unit):
    directory, log, printed = unit
    assert sent_bytes(directory, *SENT) < log.media.budget.limit == 200_000
    assert "pages/too_large" not in wandb_file.read(directory).keys
    assert log.media.budget.left_out == 1
    start = "W&B: at most 0.2 MB a run (tracking.max_mb), the adapter of 0.0 MB among them; "
    assert printed == [start + "what stands where: docs/wandb.md"]


def test_an_adapter_that_is_too_large_is_named_at_the_start(unit, monkeypatch):
    log, printed = unit[1], []
    monkeypatch.setattr(log, "warn", printed.append)
    monkeypatch.setattr(log.media, "budget", Budget(72_010))
    log._plan(4)
    assert "the adapter of 0.0 MB not among them: it is too large" in printed[0]


def test_a_budget_thins_out_a_long_run_evenly_and_the_last_step_fits():
    budget, steps = Budget(1000), range(0, 101)
    taken = [step for step in steps if budget.takes(20, step / 100)]
    assert taken[0] == 0
    assert taken[-1] == 100
    assert 20 <= len(taken) <= 25
    assert max(b - a for a, b in pairwise(taken)) <= 16
    assert budget.takes(500)
    assert not budget.takes(500)
    assert not Budget(0).takes(1, 1.0)
    kept = Budget(1000)
    kept.set_aside(500)
    assert kept.shared == 500
    assert not kept.takes(501)
    assert kept.takes(500)
    assert not Budget(1000, spent=990).takes(20)


def test_the_table_of_a_rollout_has_a_row_per_caption(unit):
    parts_NK = torch.tensor([[3.0, 1.0], [-3.0, -1.0], [0.0, 0.0], [0.0, 0.0]])
    columns, rows, ids = rollout_table(
        7, record(), parts_NK, lambda *_: torch.tensor([0.1, 0.4, 0.2, 0.2], dtype=torch.float64)
    )
    assert ids == ["x", "x", "y", "y"]
    assert dict(zip(columns, rows[1], strict=True)) == {
        "step": 7,
        "image_id": "x",
        "caption": "a\\u001bcat",
        "reward/good": 0.25,
        "reward/ended": 0.0,
        "share/good": -0.75,
        "share/ended": -0.25,
        "advantage": -1.0,
        "heldout": 0.4,
        "ended": True,
        "length": 3,
        "flags": "",
    }
    assert rows[3][3] is None
    marks = flags(record(), [0.1, 0.4, 0.2, 0.2])
    assert marks[0] == ["held-out disagrees"]
    assert marks[2] == ["empty", "repeated in its group", "group without spread"]
    assert marks[3] == ["no end", *marks[2]]


def test_a_table_holds_whole_groups_of_a_large_rollout():
    many = record(
        image_ids=("x",) * 200, captions=("a",) * 200, lengths=(1,) * 200, ended=(True,) * 200,
        rewards_NK=torch.zeros(200, 2), advantages_N=torch.zeros(200), group=50,
    )  # fmt: skip
    _, rows, _ = rollout_table(1, many, torch.zeros(200, 2), lambda ids, _: torch.zeros(len(ids)))
    assert len(rows) == 50


def test_curves_of_a_long_run_have_a_thousand_points_and_all_held_out_scores(unit, monkeypatch):
    log, logged = unit[1], []
    monkeypatch.setattr(log, "rollout", lambda: None)
    monkeypatch.setattr(log.media, "log", lambda step, values: logged.append((step, values)))
    monkeypatch.setattr(log, "last_step", 5000)
    monkeypatch.setattr(log, "point_step", 0)
    for step in range(1, 5001):
        log.row({"step": step, "loss": 0.0} | ({"heldout/score": 0.5} if step % 100 == 0 else {}))
    assert 1000 <= len(logged) <= 1050
    assert [step for step, values in logged if "heldout/score" in values] == [
        *range(100, 5001, 100)
    ]
    assert logged[-1][0] == 5000


def test_online_paths_are_absolute_for_the_process_that_uploads(monkeypatch):
    run = SimpleNamespace(dir="/somewhere/wandb/run-1/files", offline=False)
    monkeypatch.setattr(wandb, "run", run)
    assert RunMedia(Budget(1)).folder == Path("/somewhere/wandb/run-1/artifacts")
