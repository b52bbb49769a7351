"""Builds the parts of a run: policy, scorers, rewards, trainer arguments, bank of images."""

from __future__ import annotations

import random
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from rich.console import Console
from transformers import set_seed
from transformers.utils import logging as transformers_logging

import rewards as reward_files
from rewards import Bank
from rewards.lib.images import image_hash

from .. import algorithms
from ..algorithms import vizer
from ..audit.judges import RunParts
from ..config.schema import Run
from ..config.trainer_settings import trainer_arguments
from ..data.lazy import LazyImages
from ..data.sources import ImageFolder
from ..errors import UserError
from ..policy import captioner, load
from ..policy.families import FAMILIES
from ..policy.shared_prefix import vision_cache
from ..scoring.clip import Encoders
from ..scoring.reference_policy import ReferencePolicy
from ..scoring.reward_functions import Reward, RewardFunctions
from .heldout_monitor import HeldoutMonitor

CACHE = Path("data/cache")
BANK, SAMPLED = 4096, 512  # images that rewards prepare with, and how many of them are captioned


def loaded(
    run: Run, args: Any, made: list[Reward], images: ImageFolder, console: Console
) -> tuple[RunParts, vision_cache.VisionCache | None]:
    """Policy, scorers and rewards of a run, the rewards prepared on its images; image features."""
    set_seed(run.seed)
    warn = console.print if args.process_index == 0 else lambda sentence: None
    reference, scoring = ready(run, made, warn)
    seen = vision_cache.of_run(run, reference.model, reference.processor, args, console.print)
    heldout = scoring.encoders(run.scorer.heldout)
    base = bank(run, reference, seen, scoring, images)
    scoring.prepare(base)
    parts = RunParts(
        name=run.name,
        directory=run.directory,
        seed=run.seed,
        prompt=run.data.prompt,
        temperature=float(args.temperature),
        max_completion_length=int(args.max_completion_length),
        aggregation=args.multi_objective_aggregation,
        scorers=run.scorer.model_dump(),
        drawn_scenes=run.data.images is None,
        images=images,
        reference=reference,
        heldout=heldout,
        scoring=scoring,
        bank=base,
    )
    return parts, seen


def watch(
    run: Run, watched: ImageFolder, parts: RunParts, seen: vision_cache.VisionCache | None
) -> HeldoutMonitor:
    """The look at the held-out scorer while training runs."""
    return HeldoutMonitor(
        watched.ids,
        LazyImages(watched.load, watched.ids),
        run.data.prompt,
        int(run.train["max_completion_length"]),
        parts.heldout,
        parts.reference.processor,
        run.monitor.interval,
        run.monitor.keep,
        run.directory / "adapter",
        seen,
    )


def align(run: Run, trainer: Any, reference: Any, images: ImageFolder, console: Console) -> None:
    """Give a trainer whose settings want it ViZer's loss, with the mapper of its stage 1."""
    args = trainer.args
    if not args.alignment_coef:
        return
    stage1 = vizer.Stage1(
        trainer.model, reference.processor, reference.image_features, run.mapper, run.data.prompt
    )
    with args.main_process_first(desc="mapper"):  # the others read what the first has written
        trainer.alignment = stage1.alignment(
            LazyImages(images.load, images.ids), run.directory, args.max_completion_length, console
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


def ready(
    run: Run, made: list[Reward], warn: Callable[[str], object] = lambda sentence: None
) -> tuple[ReferencePolicy, RewardFunctions]:
    """The reference policy (it holds model and processor) and the reward functions of a run."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    model, processor = load.load_policy(run.family, run.policy)
    reference = ReferencePolicy(
        model,
        processor,
        run.policy.model,
        prompt=run.data.prompt,
        instruct=run.policy.instruct,
        max_new_tokens=run.train["max_completion_length"],
    )
    encoders = Encoders(run.scorer.train, load.device(), _scorer_dtype(), CACHE)
    eos, size = load.eos_ids(model, processor), run.train["num_generations"]
    return reference, RewardFunctions(
        made, encoders, reference, eos, size, run.data.prompt, warn=warn
    )


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
        args = trainer_arguments(
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


def bank(
    run: Run,
    reference: ReferencePolicy,
    seen: vision_cache.VisionCache | None,
    scoring: RewardFunctions,
    images: ImageFolder,
) -> Bank:
    """Training images for the rewards to prepare with, and the base's own captions of some."""
    ids = images.ids
    if len(ids) > BANK:
        ids = sorted(random.Random(run.seed).sample(ids, BANK))
    chosen = sorted(random.Random(run.seed).sample(ids, min(SAMPLED, len(ids))))
    pictures, longest = LazyImages(images.load, chosen), int(run.train["max_completion_length"])
    told = [reference.key, run.data.prompt, longest, run.seed, seen is None, load.device(), *chosen]
    told += [image_hash(picture) for picture in pictures]
    name = blake2b("\n".join(map(str, told)).encode(), digest_size=8).hexdigest()
    path = CACHE / f"base-{name}.pt"
    if path.exists():  # as after sampling, random state and all: the run is the same to the bit
        known = torch.load(path, weights_only=True)
        torch.set_rng_state(known["cpu"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(known["cuda"])
        texts, tokens = known["texts"], known["ids"]
    else:
        said = captioner.caption(
            reference.model,
            reference.processor,
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
    return Bank(ids, LazyImages(images.load, ids), sample, CACHE)


def _scorer_dtype() -> torch.dtype:
    return torch.float16 if torch.cuda.is_available() else torch.float32
