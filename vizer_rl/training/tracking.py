"""Tracking of a run: metrics.jsonl, Weights & Biases and other trackers, the progress bar."""

from __future__ import annotations

import json
import math
import netrc
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pydantic import BaseModel, Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..files import append_text, read_json


class Tracked(BaseModel):
    """wandb.json: how W&B has the run, where, and under which id."""

    mode: str
    url: str | None
    dir: str
    id: str | None = Field(default=None, pattern=r"^[\w-]{1,128}$")


def read_tracked(run_directory: Path) -> Tracked | None:
    """wandb.json of a run, None where it was not tracked; UserError where it is damaged."""
    path = run_directory / "wandb.json"
    tracked: Tracked | None = read_json(path, Tracked) if path.is_file() else None
    return tracked


def wandb_mode(wanted: str) -> str:
    """ "online", "offline" or "off"; auto is online where somebody is logged in. Never asks."""
    if wanted != "auto":
        return wanted
    env = os.environ.get("WANDB_MODE", "")
    if env:
        return "off" if env == "disabled" else env
    return "online" if logged_in() else "offline"


def logged_in() -> bool:
    """Whether W&B has a key: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class GuardedTracker:
    """A tracker of transformers; where it fails, a sentence says so and it gets no more events.

    A server that is away, a store that cannot be written: neither may end a run.
    """

    def __init__(
        self, name: str, callback: Any, args: Any, report: Callable[[str], object]
    ) -> None:
        """args: TRL's, whose `report_to` loses the name where the tracker fails."""
        self.name, self.callback, self.args = name, callback, args
        self.report, self.failed = report, False

    def __getattr__(self, event: str) -> Any:
        method = getattr(self.callback, event)

        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self.failed:
                return None
            try:
                return method(*args, **kwargs)
            except Exception as error:
                self.failed = True
                if self.name in self.args.report_to:
                    self.args.report_to.remove(self.name)
                reason = next(iter(str(error).splitlines()), "") or type(error).__name__
                self.report(f"{self.name} gets nothing more of this run, which goes on: {reason}")
                return None

        return guarded


def guard_trackers(trainer: Any, report: Callable[[str], object]) -> None:
    """Let each of `tracking.report_to` but W&B, which is ours, fail alone."""
    args, handler = trainer.args, trainer.callback_handler
    names = {INTEGRATION_TO_CALLBACK[name]: name for name in args.report_to}
    handler.callbacks[:] = [
        GuardedTracker(names[type(callback)], callback, args, report)
        if type(callback) in names
        else callback
        for callback in handler.callbacks
    ]
    if "mlflow" in args.report_to:
        # TRL reads it for times of its own functions alone, and would log them unguarded
        args.report_to.remove("mlflow")
        # its own are minutes for each request to a server that is away
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


class Recorder(TrainerCallback):
    """Appends one object per logged step to metrics.jsonl and moves the progress bar."""

    def __init__(
        self,
        directory: Path,
        console: Console,
        heldout: float | None,
        on_row: Sequence[Callable[[dict[str, Any]], object]] = (),
    ) -> None:
        """heldout: the held-out score before the first step, None where a run goes on; on_row: each
        gets each row."""
        self.path, self.console = directory / "metrics.jsonl", console
        self.on_row = tuple(on_row)
        self.seconds, self.step_start = 0.0, 0.0
        self.reward, self.heldout = "–", "–" if heldout is None else f"{heldout:.3f}"
        self.progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("reward {task.fields[reward]}  held-out {task.fields[heldout]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("", total=None, reward=self.reward, heldout=self.heldout)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.update(self.task, total=state.max_steps, completed=state.global_step)
        self.progress.start()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step_start = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds = time.monotonic() - self.step_start

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        finite = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in logs.items()
        }
        row = {"step": state.global_step, **finite, "time/step": round(self.seconds, 4)}
        append_text(self.path, json.dumps(row) + "\n")
        for receive in self.on_row:
            receive(row)
        if "reward" in logs:  # a step of a later epoch has no new one
            self.reward = f"{logs['reward']:+.3f}"
        if "heldout/score" in logs:
            self.heldout = f"{logs['heldout/score']:.3f}"
        shown: dict[str, Any] = {"reward": self.reward, "heldout": self.heldout}
        self.progress.update(self.task, completed=state.global_step, **shown)
        if not self.console.is_terminal and state.global_step % max(1, state.max_steps // 12) == 0:
            self.console.print(
                f"step {state.global_step}/{state.max_steps}  reward {self.reward}  "
                f"held-out {self.heldout}  {row['time/step']:.2f} s/step"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.stop()
