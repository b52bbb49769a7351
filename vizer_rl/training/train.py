"""The main job: from a run file's settings to a run directory."""

from __future__ import annotations

import gc
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..algorithms import vllm_probe
from ..audit import audit
from ..audit.report_console import show
from ..config.recipe import asks_for
from ..config.run_dir import (
    changed_environment,
    changed_settings,
    describe_environment,
    write_run_dir,
)
from ..config.schema import Run
from ..data.lazy import LazyImages
from ..data.sources import ImageFolder
from ..evaluation import evaluate
from ..evaluation.tables import PlainConsole
from ..files import whole
from ..policy.families import FAMILIES
from . import assemble, next_steps, out_of_memory, tracking, wandb_run, watch
from .alarms import ALARMS_FILE, EVIDENCE_FILE
from .caption_rewards import judge_by
from .checkpoint import (
    SaveInTime,
    check_changes,
    check_processes,
    clear,
    cut_metrics,
    last_checkpoint_named,
    locked,
    newest_whole,
    step_of,
)
from .interrupt import Interrupts
from .launch import check_precision, step_sentence
from .parts_table import print_parts
from .splits import image_sets

ImageSets = tuple[ImageFolder, ImageFolder, ImageFolder]  # train, monitor, evaluate


def train(
    run: Run, *, resume: bool = False, overwrite: bool = False, accept_changes: bool = False
) -> None:
    """Train, keep the best adapter, evaluate it. Writes `run.directory`, once all is loaded.

    resume: from the newest whole checkpoint; accept_changes: also where the run is not the same any
    more. Raises Interrupted where a signal stopped it, with a checkpoint written.
    """
    first = os.environ.get("RANK", "0") == "0"  # of several processes: the one that prints, writes
    console, directory = PlainConsole(quiet=not first), run.directory
    console.print(run.name, style="bold", end="")
    console.print(f": {run.why_profile}")
    if sentence := asks_for(run.recipe, run.rewards):
        console.print(sentence)
    if run.profile == "full" and not torch.cuda.is_available():
        console.print("no CUDA device here: a real model takes minutes per step on a CPU")
    from_checkpoint = newest_whole(directory, console.print) if resume else None
    if resume:
        check_changes(changed_settings(directory, run), accept_changes, console.print)
    rewards, listing = assemble.make_rewards(run), directory / "skipped.jsonl"
    parts = [replace(part, listing=listing) for part in image_sets(run, console)]
    images = parts[0], parts[1], parts[2]
    wanted = run.tracking.wandb if "wandb" in run.tracking.report_to else "off"
    wandb_mode = tracking.wandb_mode(wanted)
    args = assemble.make_arguments(run, rewards, len(images[0].ids))
    if args.use_vllm:
        vllm_probe.check_installed()
    check_precision(args)
    if args.world_size > 1:
        console.print(step_sentence(args))
    if from_checkpoint:
        check_processes(from_checkpoint, args.world_size)
    with locked(directory) if first else nullcontext():
        begin = Begin(console, first, wandb_mode, from_checkpoint, overwrite, accept_changes)
        _train(run, args, rewards, images, begin)
        gc.collect()  # models and trainer refer to each other: what they hold is free from here on
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if first:
            try:
                evaluate.evaluate(directory, rewards=judge_by(rewards))
                if wandb_mode != "off":
                    watch.send_report(run, console.print)
            finally:
                console.print(wandb_run.finish_wandb(wandb_mode), end="", soft_wrap=True)
            next_steps.print_next_steps(run)


@dataclass(frozen=True)
class Begin:
    """How a training begins: who prints and writes, and from what it goes on."""

    console: Console
    first: bool
    wandb_mode: str
    checkpoint: Path | None
    overwrite: bool
    accept_changes: bool


def _train(run: Run, args: Any, rewards: list[Any], images: ImageSets, begin: Begin) -> None:
    """Load all, make the run directory, train to the end or to an interrupt."""
    console, start, first = begin.console, time.monotonic(), begin.first
    train_images, watched, _ = images
    report = console.print
    components, parts = assemble.load_parts(run, args, rewards, train_images, report, report)
    if first:
        _begin_directory(run, components, images, begin)
        if run.monitor.audit and not begin.checkpoint:
            audit.short_audit(parts, console)
    with vllm_probe.server_named(args):
        trainer = assemble.make_trainer(run, components, args, train_images, console)
    tracking.guard_trackers(trainer, report)
    learn = FAMILIES[run.family], run.policy.train.model_dump(), args.learning_rate
    print_parts(console, trainer.model, *learn)
    if args.use_vllm:
        few = LazyImages(train_images.load, train_images.ids[: vllm_probe.IMAGES])
        report(vllm_probe.probe(trainer.vllm_generation, components.reference, few, args))
    logs: list[Any] = []  # to W&B
    if first and begin.wandb_mode != "off":
        logs = [watch.make_wandb_log(run, components, parts, watched, trainer, report)]
    alarms = watch.make_alarms(run, parts, trainer, report, [log.alarm for log in logs])
    receive = [alarms.take, *(log.evaluated for log in logs)]
    monitor = watch.make_monitor(run, components, parts, watched, trainer, receive)
    score = monitor.evaluate(trainer.model) if first and not begin.checkpoint else None
    on_row = [log.row for log in logs]
    recorder = tracking.Recorder(run.directory, console, score, on_row)
    interrupts = Interrupts(trainer, console.print)
    for callback in (*logs, recorder, monitor, alarms, SaveInTime(), interrupts):
        trainer.add_callback(callback)
    console.print(f"training starts after {time.monotonic() - start:.0f} s")
    try:
        checkpoint = str(begin.checkpoint) if begin.checkpoint else None
        if begin.checkpoint and 0 < args.max_steps <= step_of(begin.checkpoint):
            return  # it was stopped after its last step: transformers would train one more
        with (
            last_checkpoint_named(run.directory),
            out_of_memory.explained(run, trainer),
            interrupts.handled(),
        ):
            trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        recorder.progress.stop()  # gives the terminal back where a reward stops the run


def _begin_directory(
    run: Run, components: assemble.Components, images: ImageSets, begin: Begin
) -> None:
    """Write what a run directory begins with, or make it ready to go on; start W&B."""
    directory, (train_images, _, heldout) = run.directory, images
    environment = describe_environment(run, train_images, heldout, components.reference.key)
    if begin.checkpoint:
        changes = changed_environment(directory, environment)
        check_changes(changes, begin.accept_changes, begin.console.print)
        for file in ("metrics.jsonl", EVIDENCE_FILE, ALARMS_FILE):
            begin.console.print(cut_metrics(directory / file, begin.checkpoint), end="")
        if (adapter := whole(directory / "adapter")).is_dir():
            adapter.rename(directory / "adapter")  # where its replacement was broken off
    elif begin.overwrite:
        clear(directory)
    write_run_dir(run, directory, train_images, heldout, environment)
    components.reward_functions.save(directory / "rewards")
    settings = run.model_dump(mode="json") | {"environment": environment}
    project = run.tracking.project
    with wandb_run.wandb_folders(WANDB_CACHE_DIR=directory / "wandb" / "cache"):
        warning = wandb_run.start_wandb(begin.wandb_mode, project, directory, settings)
    begin.console.print(warning, end="")


def audit_run(run: Run) -> dict[str, Any]:
    """Load what training would load, audit it, print and write; the content of audit.json."""
    console = PlainConsole() if PlainConsole().is_terminal else PlainConsole(width=100)
    rewards, (images, _, _) = assemble.make_rewards(run), image_sets(run, console)
    args = assemble.make_arguments(run, rewards, len(images.ids))
    _, parts = assemble.load_parts(run, args, rewards, images, console.print, console.print)
    result = audit.audit(parts)
    show(console, result)
    console.print(f"\nWorst examples and all numbers: {audit.save(result, parts)}", soft_wrap=True)
    return result
