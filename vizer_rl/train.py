"""The main job: from a run to a run directory. The only place that knows all parts."""

from __future__ import annotations

import json
import platform
import random
import shutil
import subprocess
import sys
import time
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from rich.console import Console
from transformers import set_seed
from transformers.utils import logging as transformers_logging

import rewards as reward_files
from rewards import Bank

from . import algorithms, audit, evaluate, features, policy, tracking
from .algorithms import vizer
from .algorithms.grpo import arguments
from .config import Run, UserError
from .data import ImageFolder, rows
from .encoders import Encoders
from .families import FAMILIES
from .frozen import Frozen
from .image_sets import Lazy, image_sets
from .monitor import Monitor
from .scoring import Reward, Scoring
from .views import fingerprint

CACHE = Path("data/cache")
BANK, SAMPLED = 4096, 512  # images that rewards prepare with, and how many of them are captioned


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
    frozen, scoring = parts.frozen, parts.scoring
    monitor = watch(run, watched, parts, seen)

    first = args.process_index == 0  # of several devices: the one that writes
    if first:
        if overwrite and directory.exists():
            shutil.rmtree(directory)
        describe(run, directory, images, heldout)
        scoring.save(directory / "rewards")
        scoring.tell = console.print
        settings = run.model_dump(mode="json")
        console.print(tracking.start_wandb(mode, run.tracking.project, directory, settings), end="")
        if run.monitor.audit and not resume:
            audit.look_ahead(parts, console)
    recorder = tracking.Recorder(directory, console)
    trainer = algorithms.find(run.algorithm)(
        frozen.model,
        frozen.processor,
        adapter(run),
        scoring,
        args,
        rows(images, policy.messages(run.data.prompt)),
        [recorder, monitor],
        seen,
    )
    frozen.model = trainer.model  # the same weights, now with an adapter that can be switched off
    monitor.note = trainer.note
    align(run, trainer, frozen, images, console)
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
        evaluate.next_steps(directory)


def audit_run(run: Run) -> str:
    """Load what training would load, audit it, print and write; the overall verdict."""
    console = Console() if Console().is_terminal else Console(width=100)
    made, (images, _, _) = rewards_of(run), image_sets(run, console)
    args = training_arguments(run, "off", len(images.ids))
    parts, _ = loaded(run, args, made, images, console)
    numbers = audit.audit(parts)
    audit.show(console, numbers)
    console.print(f"\nWorst examples and all numbers: {audit.save(numbers, parts)}", soft_wrap=True)
    return str(numbers["verdict"]["overall"])


def loaded(
    run: Run, args: Any, made: list[Reward], images: ImageFolder, console: Console
) -> tuple[audit.Parts, features.Features | None]:
    """Policy, scorers and rewards of a run, the rewards prepared on its images; image features."""
    set_seed(run.seed)
    frozen, scoring = ready(run, made)
    seen = features.of_run(run, frozen.model, frozen.processor, args, console.print)
    heldout = scoring.encoders(run.scorer.heldout)
    base = bank(run, frozen, seen, scoring, images)
    scoring.prepare(base)
    return audit.Parts(run, args, images, frozen, heldout, scoring, base), seen


def watch(
    run: Run, watched: ImageFolder, parts: audit.Parts, seen: features.Features | None
) -> Monitor:
    """The look at the held-out scorer while training runs."""
    return Monitor(
        watched.ids,
        Lazy(watched, watched.ids),
        run.data.prompt,
        int(run.train["max_completion_length"]),
        parts.heldout,
        parts.frozen.processor,
        run.monitor.every,
        run.monitor.keep,
        run.directory / "adapter",
        seen,
    )


def align(run: Run, trainer: Any, frozen: Any, images: ImageFolder, console: Console) -> None:
    """Give a trainer whose settings want it ViZer's loss, with the mapper of its stage 1."""
    args = trainer.args
    if not args.alignment_coef:
        return
    stage1 = vizer.Stage1(
        trainer.model, frozen.processor, frozen.image_features, run.mapper, run.data.prompt
    )
    with args.main_process_first(desc="mapper"):  # the others read what the first has written
        trainer.alignment = stage1.alignment(
            Lazy(images, images.ids), run.directory, args.max_completion_length, console
        )


def rewards_of(run: Run) -> list[Reward]:
    """The run's rewards with their weights, built from their parameters, or UserError."""
    made = []
    for key, told in run.rewards.items():
        parameters = {name: value for name, value in told.items() if name != "weight"}
        try:
            reward = reward_files.make(key, parameters)
        except ValueError as error:
            raise UserError(f"rewards.{key}: {error}") from error
        made.append(Reward(reward_files.title(key), told["weight"], reward))
    return made


def ready(run: Run, made: list[Reward]) -> tuple[Frozen, Scoring]:
    """The frozen policy (it holds model and processor) and the scoring with these rewards."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    model, processor = policy.load(run.family, run.policy)
    frozen = Frozen(
        model,
        processor,
        run.policy.model,
        prompt=run.data.prompt,
        instruct=run.policy.instruct,
        max_new_tokens=run.train["max_completion_length"],
    )
    encoders = Encoders(run.scorer.train, policy.device(), _scorer_dtype(), CACHE)
    eos, size = policy.eos_ids(model, processor), run.train["num_generations"]
    return frozen, Scoring(made, encoders, frozen, eos, size, run.data.prompt)


def adapter(run: Run) -> LoraConfig:
    """LoRA on the language model's projections; nothing else learns."""
    told = run.policy.lora
    return LoraConfig(
        r=told.r,
        lora_alpha=told.alpha,
        lora_dropout=told.dropout,
        target_modules=FAMILIES[run.family].lora,
        task_type="CAUSAL_LM",
    )


def training_arguments(run: Run, mode: str, count: int) -> Any:
    """TRL's config for this run; UserError where its settings do not fit together or the images."""
    try:
        args = arguments(
            run.train,
            directory=run.directory,
            seed=run.seed,
            weights=[told["weight"] for told in run.rewards.values()],
            report_to=[] if mode == "off" else ["wandb"],
            config=algorithms.find(run.algorithm).Config,
        )
    except ValueError as error:
        raise UserError(f"train: {error}") from error
    needed = args.generation_batch_size // args.num_generations
    if count < needed:
        raise UserError(
            f"data.images: a step takes {needed} images (train.generation_batch_size "
            f"{args.generation_batch_size} / num_generations {args.num_generations}), but there "
            f"are {count} to train on"
        )
    return args


def describe(run: Run, directory: Path, images: ImageFolder, heldout: ImageFolder) -> None:
    """Write what was asked for and where it runs: config, environment, images left out."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(run.to_yaml())
    names = ("torch", "transformers", "trl", "peft", "accelerate", "open_clip_torch", "wandb")
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    about = {
        "command": " ".join(sys.argv),
        "commit": git.stdout.strip() or None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in names},
        "train_images": len(images.ids),
        "heldout_images": len(heldout.ids),
        "captions_read": run.mapper.captions,  # null: no caption of anybody's was read
    }
    (directory / "environment.json").write_text(json.dumps(about, indent=1))
    drawn = run.data.images is None
    held = {"source": str(heldout.root.resolve()), "ids": heldout.ids, "drawn": drawn}
    (directory / "heldout.json").write_text(json.dumps(held))
    images.write_skipped(directory / "skipped.jsonl")


def bank(
    run: Run,
    frozen: Frozen,
    seen: features.Features | None,
    scoring: Scoring,
    images: ImageFolder,
) -> Bank:
    """Training images for the rewards to prepare with, and the base's own captions of some."""
    ids = images.ids
    if len(ids) > BANK:
        ids = sorted(random.Random(run.seed).sample(ids, BANK))
    chosen = sorted(random.Random(run.seed).sample(ids, min(SAMPLED, len(ids))))
    pictures, longest = Lazy(images, chosen), int(run.train["max_completion_length"])
    told = [frozen.key, run.data.prompt, longest, run.seed, seen is None, policy.device(), *chosen]
    told += [fingerprint(picture).hex() for picture in pictures]
    name = blake2b("\n".join(map(str, told)).encode(), digest_size=8).hexdigest()
    path = CACHE / f"base-{name}.pt"
    if path.exists():  # as after sampling, random state and all: the run is the same to the bit
        known = torch.load(path, weights_only=True)
        torch.set_rng_state(known["cpu"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(known["cuda"])
        texts, tokens = known["texts"], known["ids"]
    else:
        said = policy.caption(
            frozen.model,
            frozen.processor,
            pictures,
            run.data.prompt,
            max_new_tokens=longest,
            temperature=1.0,
            features=seen,
        )
        texts, tokens = [c.text for c in said], [c.ids for c in said]
        known = {"texts": texts, "ids": tokens, "cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            known["cuda"] = torch.cuda.get_rng_state()
        CACHE.mkdir(parents=True, exist_ok=True)
        torch.save(known, path)
    sample = scoring.batch(chosen, pictures, texts, tokens)
    return Bank(ids, Lazy(images, ids), sample, CACHE)


def _scorer_dtype() -> torch.dtype:
    return torch.float16 if torch.cuda.is_available() else torch.float32
