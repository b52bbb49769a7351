"""The main job: from a run to a run directory. The only place that knows all parts."""

from __future__ import annotations

import shutil
import time

import torch
from rich.console import Console

from .. import algorithms
from ..audit import audit, report_console
from ..config.run_dir import write_run_dir
from ..config.schema import Run
from ..data.dataset import rows
from ..evaluation import evaluate
from ..policy import chat
from . import tracking
from .assemble import adapter, align, loaded, rewards_of, training_arguments, watch
from .next_steps import print_next_steps
from .splits import image_sets


def train(run: Run, *, resume: bool = False, overwrite: bool = False) -> None:
    """Train, keep the best adapter, evaluate it. Writes `run.directory`, once all is loaded."""
    console, began, directory = Console(), time.monotonic(), run.directory
    console.print(f"[bold]{run.name}[/]: {run.why_profile}")
    if run.profile == "full" and not torch.cuda.is_available():
        console.print("no CUDA device here: a real model takes minutes per step on a CPU")
    made, (images, watched, heldout) = rewards_of(run), image_sets(run, console)
    mode = tracking.wandb_mode(run.tracking.wandb)
    args = training_arguments(run, mode, len(images.ids))
    parts, seen = loaded(run, args, made, images, console)
    reference, scoring = parts.reference, parts.scoring
    monitor = watch(run, watched, parts, seen)

    first = args.process_index == 0  # of several devices: the one that writes
    if first:
        if overwrite and directory.exists():
            shutil.rmtree(directory)
        write_run_dir(run, directory, images, heldout)
        scoring.save(directory / "rewards")
        settings = run.model_dump(mode="json")
        console.print(tracking.start_wandb(mode, run.tracking.project, directory, settings), end="")
        if run.monitor.audit and not resume:
            audit.short_audit(parts, console)
    recorder = tracking.Recorder(directory, console)
    trainer = algorithms.find(run.algorithm)(
        reference.model,
        reference.processor,
        adapter(run),
        scoring,
        args,
        rows(images, chat.messages(run.data.prompt)),
        [recorder, monitor],
        seen,
    )
    reference.model = (
        trainer.model
    )  # the same weights, now with an adapter that can be switched off
    monitor.note = trainer.note
    align(run, trainer, reference, images, console)
    if resume:
        monitor.recall()
    elif first:
        recorder.heldout = f"{monitor.look(trainer.model):.3f}"
    console.print(f"training starts after {time.monotonic() - began:.0f} s")
    try:
        trainer.train(resume_from_checkpoint=resume or None)
    finally:
        recorder.progress.stop()  # gives the terminal back where a reward stops the run
    if first:
        images.write_skipped(directory / "skipped.jsonl")
        tracking.finish_wandb(mode)
        evaluate.evaluate(directory)
        print_next_steps(directory, run.family)


def audit_run(run: Run) -> str:
    """Load what training would load, audit it, print and write; the overall verdict."""
    console = Console() if Console().is_terminal else Console(width=100)
    made, (images, _, _) = rewards_of(run), image_sets(run, console)
    args = training_arguments(run, "off", len(images.ids))
    parts, _ = loaded(run, args, made, images, console)
    numbers = audit.audit(parts)
    report_console.show(console, numbers)
    console.print(f"\nWorst examples and all numbers: {audit.save(numbers, parts)}", soft_wrap=True)
    return str(numbers["verdict"]["overall"])
