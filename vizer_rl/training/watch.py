"""Assembly of what watches a run while it trains: held-out monitor, alarms, log to W&B."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, tensor

from rewards import Scorer
from rewards.lib.chunks import caption_cosines
from rewards.lib.lexicon import Lexicon
from rewards.lib.word_classes import WordClasses

from ..algorithms.last_rollout import RolloutRecord
from ..audit.judges import RunParts
from ..config.schema import Run
from ..data.lazy import LazyImages
from ..data.sources import ImageFolder
from ..policy.load import end_id
from ..scoring.aggregation import contributions
from ..scoring.contract import Column
from .alarms import Alarm, Alarms
from .assemble import Components
from .heldout_monitor import HeldoutMonitor, HeldoutResult, is_due

if TYPE_CHECKING:
    from .wandb_log import WandbLog

GALLERY = 16  # images


def make_monitor(
    run: Run,
    components: Components,
    parts: RunParts,
    images: ImageFolder,
    trainer: Any,
    on_evaluation: Sequence[Callable[[HeldoutResult], object]] = (),
) -> HeldoutMonitor:
    """The held-out monitor of these images, which logs and is saved with the trainer.

    on_evaluation: callables that get each result, the one before training included.
    """
    monitor = HeldoutMonitor(
        images.ids,
        LazyImages(images.load, images.ids),
        run.data.prompt,
        int(run.train["max_completion_length"]),
        parts.heldout,
        WordClasses(Lexicon.learn(parts.bank.sample.captions)),
        components.processor,
        run.monitor.interval,
        run.monitor.keep,
        run.directory / "adapter",
        components.vision_cache,
        trainer.log_metric,
        trainer.sharded,
        images.lost,
        on_evaluation,
    )
    trainer.holders["monitor"] = monitor
    return monitor


def heldout_scorer(parts: RunParts) -> Callable[[Sequence[str], Sequence[str]], Tensor]:
    """The held-out scorer of training images (ids) and captions: (N,) cosines."""

    def score(image_ids: Sequence[str], captions: Sequence[str]) -> Tensor:
        images = LazyImages(parts.images.load, image_ids)
        return caption_cosines(parts.heldout, image_ids, images, captions)

    return score


def make_alarms(
    run: Run,
    parts: RunParts,
    trainer: Any,
    report: Callable[[str], object],
    on_alarm: Sequence[Callable[[Alarm], object]] = (),
) -> Alarms:
    """The alarms of a run, saved with its trainer; `report` and each `on_alarm` get them.

    Their `take` is to be given to the monitor, and they to the trainer, behind it.
    """

    alarms = Alarms(
        run.directory,
        run.monitor.on_alarm,
        lambda: trainer.last_rollout.record,
        heldout_scorer(parts),
        lambda state: is_due(state, run.monitor.interval),
        trainer.log_metric,
        report,
        on_alarm,
        normalised=trainer.multi_objective_aggregation == "normalize_then_sum",
        rewarded=run.algorithm != "vizer",  # its rewards are logged and move nothing
    )
    trainer.holders["alarms"] = alarms
    return alarms


def make_wandb_log(
    run: Run,
    components: Components,
    parts: RunParts,
    watched: ImageFolder,
    trainer: Any,
    report: Callable[[str], object],
) -> WandbLog:
    """What sends this run to the W&B run that is open."""
    from . import wandb_log  # wandb is imported only where it is on
    from .wandb_media import jpeg

    count = min(GALLERY, len(watched.ids))
    ids = [watched.ids[n * len(watched.ids) // count] for n in range(count)]
    args, functions = trainer.args, components.reward_functions

    def parts_NK(record: RolloutRecord) -> Tensor:
        weights, gates_K = tensor(record.weights), functions.gates_K
        kinds = args.multi_objective_aggregation, args.scale_rewards
        return contributions(record.rewards_NK, weights, record.group, *kinds, gates_K)

    return wandb_log.WandbLog(
        wandb_log.open_media(run.directory, run.tracking.max_mb),
        wandb_log.Gallery(
            ids,
            [jpeg(watched.load(image_id)) for image_id in ids],
            lambda captions: single_scores(components, watched, ids, captions),
            run.directory / "wandb" / "base_captions.json",
        ),
        lambda: trainer.last_rollout.record,
        parts_NK,
        heldout_scorer(parts),
        lambda image_id: jpeg(parts.images.load(image_id)),
        run.directory,
        report,
    )


def single_scores(
    components: Components, images: ImageFolder, ids: Sequence[str], captions: Sequence[str]
) -> dict[str, Column]:
    """A caption per image under the rewards that judge one alone, here and now: no async ones."""
    functions, max_tokens = components.reward_functions, components.reference.max_new_tokens
    alone = [r for r in functions.rewards if not (r.declared("groups", False) or r.is_async)]
    judges = [replace(reward, score=_twin(reward.score)) for reward in alone]
    end, tokenizer = end_id(components.model, components.processor), components.processor.tokenizer
    tokens = [tokenizer(c, add_special_tokens=False)["input_ids"] for c in captions]
    completions = [row if len(row) >= max_tokens else [*row, end] for row in tokens]
    batch = functions.batch(ids, LazyImages(images.load, ids), captions, completions)
    return functions.scores(batch, judges)


def _twin(score: Scorer) -> Scorer:
    """A reward that notes for itself what it scores: the step's log is of the rollout alone."""
    twin = copy(score)
    if twin is not score:  # as a function would be
        kept = {key: value for key, value in vars(twin).items() if isinstance(value, list | dict)}
        vars(twin).update({key: copy(value) for key, value in kept.items()})
    return twin


def send_report(run: Run, report: Callable[[str], object]) -> None:
    """Send the page that was written at the end to W&B, where there is one."""
    from .wandb_log import send_page

    if (page := run.directory / "report.html").is_file():
        send_page("pages/report", page, run.directory, run.tracking.max_mb, report)
