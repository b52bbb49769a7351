"""Assembly of a run: policy, scorers, rewards, monitor and trainer, each from plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from rich.console import Console
from transformers import set_seed
from transformers.utils import logging as transformers_logging

import rewards as reward_files
from rewards import Bank

from .. import algorithms
from ..algorithms import vizer
from ..algorithms.alignment_loss import AlignmentLoss
from ..audit.judges import RunParts
from ..config.schema import Run
from ..config.trainer_settings import SETTINGS, trainer_arguments
from ..data.dataset import rows
from ..data.lazy import LazyImages
from ..data.sources import ImageFolder
from ..errors import UserError
from ..policy import captioner, chat
from ..policy.families import FAMILIES
from ..policy.load import device, eos_ids, load_policy
from ..policy.shared_prefix.vision_cache import VisionCache, build_vision_cache
from ..scoring.clip import Encoders
from ..scoring.reference_policy import ReferencePolicy
from ..scoring.reward_functions import Reward, RewardFunctions
from .heldout_monitor import HeldoutMonitor, best_score
from .reward_bank import make_bank

CACHE = Path("data/cache")
Report = Callable[[str], object]  # what prints a sentence


@dataclass(frozen=True)
class Components:
    """What is loaded of a run: the policy without its adapter, and what scores its captions.

    vision_cache: None where a group does not share its prompt.
    """

    model: Any
    processor: Any
    vision_cache: VisionCache | None
    reference: ReferencePolicy
    reward_functions: RewardFunctions


def make_rewards(run: Run) -> list[Reward]:
    """The run's rewards with their weights, built from their parameters, or UserError."""
    rewards = []
    for key, settings in run.rewards.items():
        parameters = {name: value for name, value in settings.items() if name != "weight"}
        try:
            reward = reward_files.make(key, parameters)
        except ValueError as error:
            raise UserError(f"rewards.{key}: {error}") from error
        rewards.append(Reward(reward_files.title(key), settings["weight"], reward))
    return rewards


def make_arguments(run: Run, wandb_mode: str, images: int) -> Any:
    """TRL's config for this run; UserError where its settings do not fit together or the images."""
    try:
        args = trainer_arguments(
            run.train,
            directory=run.directory,
            seed=run.seed,
            weights=[settings["weight"] for settings in run.rewards.values()],
            report_to=[] if wandb_mode == "off" else ["wandb"],
            config=SETTINGS[run.algorithm],
        )
    except ValueError as error:
        raise UserError(f"train: {error}") from error
    needed = args.generation_batch_size // args.num_generations
    if images < needed:
        raise UserError(
            f"data.images: a step takes {needed} images (train.generation_batch_size "
            f"{args.generation_batch_size} / num_generations {args.num_generations}), but there "
            f"are {images} to train on"
        )
    return args


def load_components(
    run: Run,
    rewards: list[Reward],
    args: Any = None,
    report: Report = lambda sentence: None,
    warn: Report = lambda sentence: None,
) -> Components:
    """Load policy and encoders; args: TRL's config, where the run is to train."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    policy = run.policy.model_dump(exclude={"instruct", "lora"})
    model, processor = load_policy(run.family, **policy)
    reference = ReferencePolicy(
        model,
        processor,
        run.policy.model,
        prompt=run.data.prompt,
        instruct=run.policy.instruct,
        max_new_tokens=run.train["max_completion_length"],
    )
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    reward_functions = RewardFunctions(
        rewards,
        Encoders(run.scorer.train, device(), dtype, CACHE),
        reference,
        eos_ids(model, processor),
        run.train["num_generations"],
        run.data.prompt,
        warn=warn,
    )
    engine = run.engine.model_dump()
    vision_cache = build_vision_cache(
        model, processor, run.family, **engine, args=args, report=report
    )
    return Components(model, processor, vision_cache, reference, reward_functions)


def prepare_rewards(run: Run, components: Components, images: ImageFolder) -> Bank:
    """Let the rewards prepare themselves on the bank; returns it."""
    max_new_tokens, cache = int(run.train["max_completion_length"]), components.vision_cache
    bank = make_bank(
        images,
        components.reward_functions,
        CACHE,
        run.seed,
        key=[components.reference.key, run.data.prompt, max_new_tokens, run.seed, cache is None],
        sample=lambda lazy_images: captioner.caption(
            components.model,
            components.processor,
            lazy_images,
            run.data.prompt,
            max_new_tokens=max_new_tokens,
            temperature=1.0,
            vision_cache=cache,
        ),
    )
    components.reward_functions.prepare(bank)
    return bank


def load_parts(
    run: Run, args: Any, rewards: list[Reward], images: ImageFolder, report: Report, warn: Report
) -> tuple[Components, RunParts]:
    """The components, and what an audit looks at: the rewards prepared, the held-out scorer."""
    set_seed(run.seed)
    components = load_components(run, rewards, args, report, warn)
    heldout = components.reward_functions.encoders(run.scorer.heldout)
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
        reference=components.reference,
        heldout=heldout,
        scoring=components.reward_functions,
        bank=prepare_rewards(run, components, images),
    )
    return components, parts


def lora_config(run: Run) -> LoraConfig:
    """LoRA on the language model's projections; nothing else learns."""
    return LoraConfig(
        r=run.policy.lora.r,
        lora_alpha=run.policy.lora.alpha,
        lora_dropout=run.policy.lora.dropout,
        target_modules=FAMILIES[run.family].lora,
        task_type="CAUSAL_LM",
    )


def make_trainer(
    run: Run, components: Components, args: Any, images: ImageFolder, console: Console
) -> Any:
    """The algorithm's trainer of these images."""

    def alignment(model: Any) -> AlignmentLoss:
        with args.main_process_first(desc="mapper"):  # the others read what the first has written
            return vizer.fit_alignment(
                model,
                components.processor,
                LazyImages(images.load, images.ids),
                components.reference.image_features,
                run.data.prompt,
                run.directory,
                args.max_completion_length,
                console,
                vizer.MapperSettings(**run.mapper.model_dump()),
            )

    return algorithms.find(run.algorithm)(
        components.model,
        components.processor,
        lora_config(run),
        components.reward_functions,
        args,
        rows(images, chat.messages(run.data.prompt)),
        components.vision_cache,
        alignment if args.alignment_coef else None,
    )


def make_monitor(
    run: Run,
    components: Components,
    parts: RunParts,
    images: ImageFolder,
    trainer: Any,
    resume: bool,
) -> HeldoutMonitor:
    """The held-out monitor of these images, which logs with the trainer's metrics."""
    adapter = run.directory / "adapter"
    return HeldoutMonitor(
        images.ids,
        LazyImages(images.load, images.ids),
        run.data.prompt,
        int(run.train["max_completion_length"]),
        parts.heldout,
        components.processor,
        run.monitor.interval,
        run.monitor.keep,
        adapter,
        components.vision_cache,
        trainer.log_metric,
        trainer.sharded,
        best_score(adapter) if resume else float("-inf"),
    )
