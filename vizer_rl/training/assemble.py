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
from ..policy.image_tokens import image_tokens_sentence
from ..policy.load import device, eos_ids, load_policy
from ..policy.shared_prefix.obstacles import build_vision_cache
from ..policy.shared_prefix.vision_cache import VisionCache
from ..policy.trained_parts import adapter_config
from ..scoring.clip import Encoders
from ..scoring.reference_policy import ReferencePolicy
from ..scoring.reward import Reward, opening_of
from ..scoring.reward_functions import RewardFunctions
from . import downloads
from .openings import check_opening, check_single
from .reward_bank import check_ends, make_bank

CACHE = Path("data/cache")
ENDED = {"ended": {"weight": 1.0}}  # the gate of every run, whether its file names it or not
Report = Callable[[str], object]  # what prints a sentence


@dataclass(frozen=True)
class Components:
    """What is loaded of a run: the policy without its adapter, and what scores its captions.

    adapter: PEFT's config of what is to learn, None where nothing is; vision_cache: None where a
    group does not share its prompt.
    """

    model: Any
    adapter: LoraConfig | None
    processor: Any
    vision_cache: VisionCache | None
    reference: ReferencePolicy
    reward_functions: RewardFunctions


def make_rewards(run: Run) -> list[Reward]:
    """The run's rewards and ENDED with their weights, built from their parameters, or UserError."""
    rewards, listed = [], {reward_files.title(key) for key in run.rewards}
    added = {key: settings for key, settings in ENDED.items() if key not in listed}
    for key, settings in (run.rewards | added).items():
        parameters = {name: value for name, value in settings.items() if name != "weight"}
        try:
            reward = reward_files.make(key, parameters)
        except ValueError as error:
            raise UserError(f"rewards.{key}: {error}") from error
        rewards.append(Reward(reward_files.title(key), settings["weight"], reward))
    check_single(rewards)
    return rewards


def make_arguments(run: Run, rewards: list[Reward], images: int) -> Any:
    """TRL's config for this run; UserError where its settings do not fit together or the images."""
    try:
        args = trainer_arguments(
            run.train,
            directory=run.directory,
            seed=run.seed,
            weights=[reward.weight for reward in rewards],
            report_to=[name for name in run.tracking.report_to if name != "wandb"],  # that is ours
            project=run.tracking.project,
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
    downloads.fetch(run, warn)
    transformers_logging.set_verbosity_error()
    policy = run.policy.model_dump(exclude={"instruct", "lora"})
    model, processor = load_policy(run.family, **policy)
    learn = run.policy.train.model_dump(), run.policy.lora.model_dump()
    adapter = adapter_config(FAMILIES[run.family], *learn, lambda: model)
    engine = run.engine.model_dump()
    vision_cache = build_vision_cache(
        model, processor, run.family, **engine, args=args, report=report
    )
    reference = ReferencePolicy(
        model,
        processor,
        run.policy.model,
        prompt=run.data.prompt,
        instruct=run.policy.instruct,
        max_new_tokens=run.train["max_completion_length"],
        family=vision_cache.family if vision_cache else None,
    )
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    reward_functions = RewardFunctions(
        rewards,
        Encoders(run.scorer.train, device(), dtype, CACHE, opening_of(rewards)),
        reference,
        eos_ids(model, processor),
        run.train["num_generations"],
        run.data.prompt,
        warn=warn,
    )
    check_opening(reward_functions, vision_cache, args)
    return Components(model, adapter, processor, vision_cache, reference, reward_functions)


def prepare_rewards(run: Run, components: Components, images: ImageFolder, report: Report) -> Bank:
    """The bank, on which the rewards are prepared; UserError where the base ends few captions."""
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
    report(check_ends(bank, max_new_tokens))
    components.reward_functions.prepare(bank)
    return bank


def load_parts(
    run: Run, args: Any, rewards: list[Reward], images: ImageFolder, report: Report, warn: Report
) -> tuple[Components, RunParts]:
    """The components, and what an audit looks at: the rewards prepared, the held-out scorer."""
    set_seed(run.seed)
    components = load_components(run, rewards, args, report, warn)
    if run.data.images is not None:
        rule = FAMILIES[run.family].images
        report(image_tokens_sentence(components.processor, rule, images.sample_sizes(run.seed)))
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
        bank=prepare_rewards(run, components, images, warn),
        vision_cache=components.vision_cache,
    )
    return components, parts


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
                components.vision_cache,
            )

    return algorithms.find(run.algorithm)(
        components.model,
        components.processor,
        components.adapter,
        components.reward_functions,
        args,
        rows(images, chat.messages(run.data.prompt)),
        components.vision_cache,
        alignment if args.alignment_coef else None,
    )
