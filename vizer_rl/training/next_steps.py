"""Commands to run after a training, with the name of the run filled in, for the console."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from rich.console import Console


def print_next_steps(run_directory: Path, family: str) -> None:
    """Print how to open the W&B run, and a command for each thing to do next."""
    console = Console(markup=False, emoji=False, highlight=False)
    name, make = shlex.quote(run_directory.name), f"make train-{family}"
    steps = [
        ("caption a photo", f".venv/bin/vizer-rl caption photo.jpg --run {name}"),
        (
            "a reward of your own, in rewards/my_reward.py",
            f'{make} NAME=mine ARGS="rewards.my_reward.weight=1.0"',
        ),
        (
            "the real model on your photos, on a GPU",
            f"{make} PROFILE=full IMAGES=~/photos NAME=photos",
        ),
    ]
    if (run_directory / "wandb.json").is_file():
        tracked = json.loads((run_directory / "wandb.json").read_text(encoding="utf-8"))
        sync = f".venv/bin/wandb sync {shlex.quote(str(tracked['dir']))}"
        command = tracked["url"] if tracked["mode"] == "online" else sync
        steps.insert(0, ("the curves on W&B", command))
    console.print("\nNext:")
    for step, command in steps:
        console.print(f"  {step}\n    {command}", soft_wrap=True)
