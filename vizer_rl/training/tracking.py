"""Tracking of a run: metrics.jsonl, Weights & Biases, the progress bar."""

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
