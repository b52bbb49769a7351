"""The main job: from a run file's settings to a run directory."""

from __future__ import annotations

import shutil
import time

import torch
from rich.console import Console

from ..audit import audit
from ..audit.report_console import show
from ..config.run_dir import write_run_dir
from ..config.schema import Run
from ..evaluation import evaluate
from . import assemble, next_steps, tracking
from .splits import image_sets


def train(run: Run, *, resume: bool = False, overwrite: bool = False) -> None:
    """Train, keep the best adapter, evaluate it. Writes `run.directory`, once all is loaded."""
    console, start, directory = Console(), time.monotonic(), run.directory
    console.print(f"[bold]{run.name}[/]: {run.why_profile}")
    if run.profile == "full" and not torch.cuda.is_available():
        console.print("no CUDA device here: a real model takes minutes per step on a CPU")
    rewards, (images, watched, heldout) = assemble.make_rewards(run), image_sets(run, console)
    wandb_mode = tracking.wandb_mode(run.tracking.wandb)
    args = assemble.make_arguments(run, wandb_mode, len(images.ids))
    first = args.process_index == 0  # of several devices: the one that writes
    warn = console.print if first else lambda sentence: None
    components, parts = assemble.load_parts(run, args, rewards, images, console.print, warn)
    if first:
        if overwrite and directory.exists():
            shutil.rmtree(directory)
        write_run_dir(run, directory, images, heldout)
        components.reward_functions.save(directory / "rewards")
        settings, project = run.model_dump(mode="json"), run.tracking.project
        console.print(tracking.start_wandb(wandb_mode, project, directory, settings), end="")
        if run.monitor.audit and not resume:
            audit.short_audit(parts, console)
    trainer = assemble.make_trainer(run, components, args, images, console)
    monitor = assemble.make_monitor(run, components, parts, watched, trainer, resume)
    score = monitor.evaluate(trainer.model) if first and not resume else None
    recorder = tracking.Recorder(directory, console, score)
    trainer.add_callback(recorder)
    trainer.add_callback(monitor)
    console.print(f"training starts after {time.monotonic() - start:.0f} s")
    try:
        trainer.train(resume_from_checkpoint=resume or None)
    finally:
        recorder.progress.stop()  # gives the terminal back where a reward stops the run
    if first:
        images.write_skipped(directory / "skipped.jsonl")
        tracking.finish_wandb(wandb_mode)
        evaluate.evaluate(directory)
        next_steps.print_next_steps(directory, run.family)


def audit_run(run: Run) -> str:
    """Load what training would load, audit it, print and write; the overall verdict."""
    console = Console() if Console().is_terminal else Console(width=100)
    rewards, (images, _, _) = assemble.make_rewards(run), image_sets(run, console)
    args = assemble.make_arguments(run, "off", len(images.ids))
    _, parts = assemble.load_parts(run, args, rewards, images, console.print, console.print)
    result = audit.audit(parts)
    show(console, result)
    console.print(f"\nWorst examples and all numbers: {audit.save(result, parts)}", soft_wrap=True)
    return str(result["verdict"]["overall"])
