"""ViZer (arXiv 2510.12931), the paper this project answers: no reward, only its alignment loss.

Stage 1 fits the mapper on captions of the reference policy (ViZer_G) or on given ones (ViZer_GT):
`fit_alignment`. Stage 2 is GRPO's trainer with every advantage 0, so that the loss is 1 - cos
(alignment_loss.py) and beta times the KL to the reference. The paper mentions no KL:
`train.beta=0` is the paper's. The rewards of the run file are logged and move nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from rewards.lib.mapper import Mapper, fit_mapper, keep, kept

from ..data import caption_file
from ..data.lazy import LazyImages
from ..errors import UserError
from ..files import write_atomic
from ..policy import captioner
from ..policy.hidden_states import caption_tokens, token_states
from ..policy.shared_prefix.vision_cache import VisionCache
from .alignment_loss import AlignmentLoss, ImageFeatures, connector_features, pooled
from .grpo import GRPO
from .trl_logs import log_advantages

MIN_CAPTIONS = 16
CHUNK = 32  # captions in one pass of stage 1
MAPPER_FILE = "mapper.pt"  # in the run directory


class ViZer(GRPO):
    """GRPO's trainer without advantages: ViZer's loss and the KL are all there is."""

    takes_opening = False  # no reward moves it, so it would never learn to say one

    def finish_rollout(self, output: dict[str, Any]) -> None:
        """Set every advantage to 0."""
        output["advantages"] = torch.zeros_like(output["advantages"])
        log_advantages(self, output)


@dataclass(frozen=True)
class MapperSettings:
    """The run file's `mapper`: config/schema.py says what each field is."""

    source: str
    captions: str | None
    reading: str
    pooling: str
    target: str
    width: int
    images: int
    steps: int
    learning_rate: float

    def saved(self) -> dict[str, Any]:
        """What a kept mapper must agree in with the run that takes it up again."""
        names = ("source", "reading", "pooling", "target", "width")
        return {name: getattr(self, name) for name in names}


def fit_alignment(
    model: Any,
    processor: Any,
    images: LazyImages,
    tower_features: ImageFeatures,
    prompt: str,
    directory: Path,
    max_new_tokens: int,
    console: Console,
    settings: MapperSettings,
    vision_cache: VisionCache | None = None,
) -> AlignmentLoss:
    """ViZer's loss with the mapper of stage 1, fitted now or kept in the run directory.

    model: the PeftModel; tower_features: of the reference policy. UserError where the mapper has
    collapsed, or was kept under other settings.
    """
    path, features = directory / MAPPER_FILE, tower_features
    if settings.target == "connector":
        features = connector_features(model, processor)
    if path.is_file():
        try:
            mapper, saved = kept(path, model.device)
        except ValueError as error:
            raise UserError(f"{error}; without the file another one is fitted") from error
        if any(saved[key] != value for key, value in settings.saved().items()):
            raise UserError(f"{path} was trained with other settings than mapper has now")
    else:
        if settings.source == "captions":
            completions = _given_captions(model, processor, images.ids, prompt, console, settings)
        else:
            completions = _own_captions(
                model, processor, images, prompt, max_new_tokens, settings.images, vision_cache
            )
        if len(completions) < MIN_CAPTIONS:
            raise UserError(
                f"ViZer's mapper needs captions of {MIN_CAPTIONS} training images, "
                f"not {len(completions)}"
            )
        pairs = _pairs(model, processor, images, features, prompt, completions, settings)
        mapper, matching = _fit(*pairs, console, settings)
        write_atomic(path, lambda p: keep(p, mapper, matching=matching, **settings.saved()))
    return AlignmentLoss(mapper, features, settings.reading, settings.pooling)


def _given_captions(
    model: Any,
    processor: Any,
    ids: list[str],
    prompt: str,
    console: Console,
    settings: MapperSettings,
) -> dict[int, list[int]]:
    """Image number -> token ids of the caption that the user's file gives."""
    path = Path(str(settings.captions))
    captions = caption_file.read(path, ids)
    console.print("CAPTIONS ARE READ", style="bold red", end="")
    console.print(
        f": {len(captions)} of {path} (mapper.source). What this run learns is not label-free."
    )
    row = {image_id: number for number, image_id in enumerate(ids)}
    chosen = _subset(list(captions), settings.images)
    return {row[i]: caption_tokens(model, processor, prompt, captions[i]) for i in chosen}


def _own_captions(
    model: Any,
    processor: Any,
    images: LazyImages,
    prompt: str,
    max_new_tokens: int,
    count: int,
    vision_cache: VisionCache | None,
) -> dict[int, list[int]]:
    """Image number -> token ids that the reference policy samples, of at most `count` images."""
    rows = _subset(range(len(images)), count)
    with model.disable_adapter():
        captions = captioner.caption(
            model,
            processor,
            images[rows],
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=1.0,
            vision_cache=vision_cache,
        )
    return {row: caption.ids for row, caption in zip(rows, captions, strict=True)}


def _pairs(
    model: Any,
    processor: Any,
    images: LazyImages,
    features: ImageFeatures,
    prompt: str,
    completions: dict[int, list[int]],
    settings: MapperSettings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled caption states (N, D) and image features (N, V) of the reference policy."""
    rows, chunks = list(completions), list[tuple[torch.Tensor, torch.Tensor]]()
    with model.disable_adapter(), torch.no_grad():
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            decoded = [images[row] for row in chunk]
            hidden, mask = token_states(
                model, processor, decoded, prompt, [completions[row] for row in chunk]
            )
            states = pooled(model, hidden, mask, settings.reading, settings.pooling)
            chunks.append((states, features([images.ids[row] for row in chunk], decoded)))
    states, image_features = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return states, image_features


def _fit(
    states: torch.Tensor, features: torch.Tensor, console: Console, settings: MapperSettings
) -> tuple[Mapper, float]:
    """A mapper fitted to these pairs, and its matching accuracy on pairs kept from training."""
    try:
        with _progress(console, settings.steps) as advance:
            mapper, matching, variance = fit_mapper(
                states,
                features,
                width=settings.width,
                steps=settings.steps,
                learning_rate=settings.learning_rate,
                remedy="give it more mapper.steps, or another mapper.reading or pooling",
                progress=advance,
            )
    except ValueError as error:
        raise UserError(f"ViZer: {error}") from error
    console.print(
        f"ViZer's mapper: {len(states)} captions ({settings.source}), loss "
        f"{1 - mapper.cosine(states, features).mean():.3f}, held-out matching {matching:.3f} "
        f"(chance .5), variance {variance:.3f} of the images'"
    )
    return mapper, matching


def _subset(population: Sequence[Any], count: int) -> list[Any]:
    """At most `count`, in order; the choice does not depend on the run's seed."""
    chosen = random.Random(0).sample(range(len(population)), min(count, len(population)))
    return [population[k] for k in sorted(chosen)]


@contextmanager
def _progress(console: Console, steps: int) -> Iterator[Callable[[float], None]]:
    """A progress bar; what it yields takes the loss after each update."""
    columns = (TextColumn("mapper"), MofNCompleteColumn(), BarColumn(bar_width=24))
    loss = TextColumn("loss {task.fields[loss]:.3f}")
    with Progress(*columns, loss, console=console, transient=True) as bar:
        task = bar.add_task("", total=steps, loss=1.0)
        yield lambda loss: bar.update(task, advance=1, loss=loss)
