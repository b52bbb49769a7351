"""Commands to run after a training, with the name of the run filled in, for the console."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ..config.schema import Run
from ..evaluation.tables import PlainConsole
from .tracking import read_tracked

Step = tuple[str, str]  # what it does, the command
CHECKOUT = (Path(__file__).parents[2] / "Makefile").is_file()  # a wheel has no make and no .venv


def print_next_steps(run: Run) -> None:
    """Print how to open the W&B run, and a command for each thing to do next."""
    console = PlainConsole()
    name = shlex.quote(run.name)
    steps = _after_scenes(run.family, name) if run.data.images is None else _after_own(run, name)
    console.print("\nNext:")
    for step, command in _wandb_step(run.directory) + steps:
        if not CHECKOUT:
            command = command.removeprefix(".venv/bin/")
            if command.startswith("make "):
                continue
        console.print(f"  {step}\n    {command}", soft_wrap=True)


def _wandb_step(run_directory: Path) -> list[Step]:
    """How to open the run on W&B or to bring it there; nothing where it was not tracked."""
    if (tracked := read_tracked(run_directory)) is None:
        return []
    parts = sorted(run_directory.glob(f"wandb/offline-run-*-{tracked.id}"))  # one per resumption
    folders = [str(part) for part in parts] or [tracked.dir]
    sync = f".venv/bin/wandb sync {shlex.join(folders)}"
    return [("the curves on W&B", tracked.url or sync)]


def _after_scenes(family: str, name: str) -> list[Step]:
    """After a demo run on the drawn scenes: the user's own photo, reward and photos."""
    make = f"make train-{family}"
    return [
        _controls_step(name),
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


def _after_own(run: Run, name: str) -> list[Step]:
    """After a run on the user's own images: use it, train it for longer, compare it."""
    file = shlex.quote(str(run.directory / "config.yaml"))
    return [
        ("caption a folder of photos", f".venv/bin/vizer-rl caption ~/more-photos --run {name}"),
        (
            "go on for as long again",
            f".venv/bin/vizer-rl train {file} {_doubled(run.train)} --resume",
        ),
        _controls_step(name),
        (
            "take the model along, for transformers and PEFT",
            f".venv/bin/vizer-rl export --run {name} --to adapter --out {name}-lora",
        ),
    ]


def _controls_step(name: str) -> Step:
    """The rows that cost minutes, so that no training waits for them."""
    return (
        "is it better than prompts, best of 8 and captions as long, which need no training",
        f".venv/bin/vizer-rl evaluate --run {name}",
    )


def _doubled(train: dict[str, Any]) -> str:
    """The override that makes a training twice as long: of its steps, where set, else epochs."""
    if train.get("max_steps", -1) > 0:
        return f"train.max_steps={2 * train['max_steps']}"
    return f"train.num_train_epochs={2 * train.get('num_train_epochs', 3.0):g}"
