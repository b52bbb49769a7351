"""Tracking: never a login prompt, never a run lost to a server, one row per step."""

import io
import json
from types import SimpleNamespace

import pytest
import wandb
from rich.console import Console
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_callback import CallbackHandler, TrainerControl

from vizer_rl.training import tracking, wandb_run


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """Nobody is logged in to W&B."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path


def test_auto_is_online_where_somebody_is_logged_in(nobody, monkeypatch):
    assert tracking.wandb_mode("auto") == "offline"
    (nobody / "netrc").write_text("machine api.wandb.ai login user password 0123456789")
    assert tracking.wandb_mode("auto") == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert tracking.wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert tracking.wandb_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert tracking.wandb_mode("auto") == "off"
    assert tracking.wandb_mode("online") == "online"


def test_a_server_out_of_reach_turns_the_run_offline(nobody, monkeypatch):
    modes = []

    def init(mode, **_):
        modes.append(mode)
        if mode == "online":
            raise wandb.errors.CommError("timed out\nand more")
        return SimpleNamespace(id="x", url=None, dir=str(nobody / "wandb" / "run" / "files"))

    monkeypatch.setattr(wandb, "init", init)
    captions = wandb_run.start_wandb("online", "project", nobody, {})
    assert modes == ["online", "offline"]
    assert captions == "W&B cannot be reached (timed out): this run is recorded offline\n"
    assert json.loads((nobody / "wandb.json").read_text())["mode"] == "offline"


def test_off_touches_nothing(nobody, monkeypatch):
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("W&B was started"))
    assert wandb_run.start_wandb("off", "project", nobody, {}) == ""
    assert list(nobody.iterdir()) == []


def step(recorder, number, **logs):
    state = SimpleNamespace(global_step=number, max_steps=3, is_world_process_zero=True)
    recorder.on_step_begin(None, state, None)
    recorder.on_step_end(None, state, None)
    recorder.on_log(None, state, None, logs=logs)


def test_one_row_per_step_under_the_names_others_read(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    recorder = tracking.Recorder(tmp_path, console, None)
    recorder.on_train_begin(None, SimpleNamespace(global_step=0, max_steps=3), None)
    step(recorder, 1, reward=0.25, loss=0.1, **{"reward/length": -0.5, "heldout/score": 0.125})
    step(recorder, 2, reward=0.5, loss=0.1, **{"reward/length": -0.25})
    step(recorder, 3, train_loss=0.0)  # the summary at the end is no step
    recorder.on_train_end(None, None, None)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["reward"], r["reward/length"]) for r in rows] == [
        (1, 0.25, -0.5),
        (2, 0.5, -0.25),
    ]
    assert all(r["time/step"] >= 0 for r in rows)
    shown = console.file.getvalue()
    assert "2/3" in shown
    assert "+0.500" in shown
    assert "held-out 0.125" in shown


class FailingTracker(INTEGRATION_TO_CALLBACK["mlflow"]):
    """Fails at its second log, as one whose server went away."""

    def __init__(self):
        self.steps = []

    def on_log(self, args, state, control, **_):
        self.steps.append(state.global_step)
        if len(self.steps) == 2:
            raise ConnectionError("no route to host\nand a trace")


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(monkeypatch):
    monkeypatch.setitem(tracking.INTEGRATION_TO_CALLBACK, "mlflow", FailingTracker)
    monkeypatch.setattr(tracking.os, "environ", {"MLFLOW_HTTP_REQUEST_TIMEOUT": "60"})
    tracker, steps, sentences = FailingTracker(), [], []
    after = SimpleNamespace(
        on_log=lambda args, state, control, **_: steps.append(state.global_step)
    )
    args = SimpleNamespace(report_to=["mlflow", "trackio"])
    handler = CallbackHandler([], None, None, None, None)
    handler.callbacks = [tracker, after]
    tracking.guard_trackers(SimpleNamespace(args=args, callback_handler=handler), sentences.append)
    assert args.report_to == ["trackio"], "TRL logs nothing to mlflow by itself"
    waits = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "60", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    assert tracking.os.environ == waits, "the user's own stays"
    for step in (1, 2, 3):
        state = SimpleNamespace(global_step=step)
        handler.call_event("on_log", args, state, TrainerControl(), logs={"loss": 0.0})
    assert tracker.steps == [1, 2]
    assert steps == [1, 2, 3], "those behind it get every event"
    assert sentences == ["mlflow gets nothing more of this run, which goes on: no route to host"]
