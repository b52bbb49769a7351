"""The main job: from a run to a run directory. The only place that knows all parts."""

from __future__ import annotations

import json
import platform
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from PIL.Image import Image
from rich.console import Console
from transformers import set_seed
from transformers.utils import logging as transformers_logging

import rewards as reward_files
from rewards import Bank

from . import algorithms, evaluate, features, policy, tracking
from .algorithms.grpo import arguments
from .config import Run, UserError
from .data import ImageFolder, rows
from .encoders import Encoders
from .families import FAMILIES
from .monitor import Monitor
from .scenes import draw
from .scoring import Reward, Scoring

SCENES, CACHE = Path("data/scenes"), Path("data/cache")
TRAIN_SCENES, HELDOUT_FROM, WATCH_FROM = 1024, 1_000_000, 1_500_000  # how many; scene numbers
BANK, SAMPLED = 4096, 512  # images that rewards prepare with, and how many of them are captioned


def train(run: Run, *, resume: bool = False, overwrite: bool = False) -> None:
    """Train, keep the best adapter, evaluate it. Writes `run.directory`, once all is loaded."""
    console, began, directory = Console(), time.monotonic(), run.directory
    _quiet()
    console.print(f"[bold]{run.name}[/]: {run.why_profile}")
    if run.profile == "full" and not torch.cuda.is_available():
        console.print("no CUDA device here: a real model takes minutes per step on a CPU")
    images, watched, heldout = image_sets(run, console)
    mode = tracking.wandb_mode(run.tracking.wandb)
    args = training_arguments(run, mode, len(images.ids))
    set_seed(run.seed)
    model, processor = policy.load(run.family, run.policy)
    seen = features.of_run(run, model, processor, args, console.print)
    frozen = policy.Frozen(model, processor, run.policy.model)
    encoders = Encoders(run.scorer.train, policy.device(), _scorer_dtype())
    monitor = Monitor(
        watched.ids,
        Lazy(watched, watched.ids),
        run.data.prompt,
        args.max_completion_length,
        encoders(run.scorer.heldout),
        processor,
        run.monitor.every,
        directory / "adapter",
        seen,
    )
    eos = policy.eos_ids(model, processor)
    scoring = Scoring(rewards_of(run), encoders, frozen, eos, args.num_generations)
    scoring.prepare(bank(run, model, processor, seen, scoring, images))

    first = args.process_index == 0  # of several devices: the one that writes
    if first:
        if overwrite and directory.exists():
            shutil.rmtree(directory)
        describe(run, directory, images, heldout)
        settings = run.model_dump(mode="json")
        console.print(tracking.start_wandb(mode, run.tracking.project, directory, settings), end="")
    recorder = tracking.Recorder(directory, list(run.rewards), console)
    trainer = algorithms.find(run.algorithm)(
        model,
        processor,
        adapter(run),
        scoring,
        args,
        rows(images, policy.messages(run.data.prompt)),
        [recorder, monitor],
        seen,
    )
    frozen.model = trainer.model  # the same weights, now with an adapter that can be switched off
    monitor.note = trainer.note
    if resume:
        monitor.recall()
    elif first:
        recorder.heldout = monitor.look(trainer.model)
    console.print(f"training starts after {time.monotonic() - began:.0f} s")
    trainer.train(resume_from_checkpoint=resume or None)
    if first:
        images.write_skipped(directory / "skipped.jsonl")
        tracking.finish_wandb(mode)
        evaluate.evaluate(directory)
        evaluate.next_steps(directory)


def rewards_of(run: Run) -> list[Reward]:
    """The run's rewards with their weights, built from their parameters."""
    made = []
    for name, told in run.rewards.items():
        parameters = {key: value for key, value in told.items() if key != "weight"}
        made.append(Reward(name, told["weight"], reward_files.make(name, parameters)))
    return made


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


class Lazy(Sequence[Image]):
    """Images of a folder by number, decoded when indexed and not before."""

    def __init__(self, folder: ImageFolder, ids: Sequence[str]) -> None:
        self.folder, self.ids = folder, list(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        return self.folder.load(self.ids[index])


def image_sets(run: Run, console: Console) -> tuple[ImageFolder, ImageFolder, ImageFolder]:
    """Images to train on, to watch, to evaluate on.

    Scenes are drawn on first use. Of a user's own images the last two are a choice that no seed
    moves, at most a tenth and a fifth, and never trained on.
    """
    if run.data.images is None:
        drawn = draw.write(SCENES / "train", 0, TRAIN_SCENES)
        seen = draw.write(SCENES / f"watch-{run.monitor.images}", WATCH_FROM, run.monitor.images)
        kept = draw.write(SCENES / f"heldout-{run.data.heldout}", HELDOUT_FROM, run.data.heldout)
        images = ImageFolder.index(drawn, run.data.limit, run.seed)
        return images, ImageFolder.index(seen), ImageFolder.index(kept)
    every = ImageFolder.index(run.data.images)
    if len(every.ids) < 10:
        raise UserError(
            f"data.images {run.data.images!r} has {len(every.ids)} usable images: need 10"
        )
    ids = random.Random(0).sample(every.ids, len(every.ids))
    cuts = min(run.data.heldout, len(ids) // 5), min(run.monitor.images, len(ids) // 10)
    held, watch, rest = ids[: cuts[0]], ids[cuts[0] : sum(cuts)], ids[sum(cuts) :]
    if run.data.limit:
        rest = random.Random(run.seed).sample(rest, min(run.data.limit, len(rest)))
    if every.skipped:
        console.print(f"{len(every.skipped)} files skipped: see skipped.jsonl in the run directory")
    one, two, three = (replace(every, ids=sorted(some)) for some in (rest, watch, held))
    return one, two, three


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
    }
    (directory / "environment.json").write_text(json.dumps(about, indent=1))
    drawn = run.data.images is None
    held = {"source": str(heldout.root.resolve()), "ids": heldout.ids, "drawn": drawn}
    (directory / "heldout.json").write_text(json.dumps(held))
    images.write_skipped(directory / "skipped.jsonl")


def bank(
    run: Run,
    model: Any,
    processor: Any,
    seen: features.Features | None,
    scoring: Scoring,
    images: ImageFolder,
) -> Bank:
    """Training images for the rewards to prepare with, and the base's own captions of some."""
    ids = images.ids
    if len(ids) > BANK:
        ids = sorted(random.Random(run.seed).sample(ids, BANK))
    chosen = sorted(random.Random(run.seed).sample(ids, min(SAMPLED, len(ids))))
    pictures = Lazy(images, chosen)
    said = policy.caption(
        model,
        processor,
        pictures,
        run.data.prompt,
        max_new_tokens=int(run.train["max_completion_length"]),
        temperature=1.0,
        features=seen,
    )
    sample = scoring.batch(chosen, pictures, [c.text for c in said], [c.ids for c in said])
    return Bank(ids, Lazy(images, ids), sample, CACHE)


def _quiet() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _scorer_dtype() -> torch.dtype:
    return torch.float16 if torch.cuda.is_available() else torch.float32
