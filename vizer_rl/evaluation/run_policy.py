"""A run's policy as evaluation uses it: captions of the same images with the adapter off and on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL.Image import Image
from rich.console import Console
from rich.progress import track

from ..config.run_dir import read_run
from ..config.schema import Run
from ..config.validate_files import model_problems
from ..data.sources import ImageFolder
from ..errors import ImageError, UserError, printable
from ..files import whole
from ..policy import captioner, load
from ..policy.lora import load_adapter
from ..policy.shared_prefix.obstacles import build_vision_cache
from ..scoring.reference_policy import ReferencePolicy

IMAGE_BATCH = 32  # images decoded and captioned together


def trained_run(run_directory: Path) -> Run:
    """The run of a directory that holds an adapter; else UserError."""
    run = read_run(run_directory)
    if not (whole(run_directory / "adapter") / "adapter_config.json").is_file():
        raise UserError(
            f"run '{run_directory}' has no trained weights: '{run_directory / 'adapter'}' holds no "
            f"adapter; train it to its first look at the held-out scorer"
        )
    for problem in model_problems(run.policy.model, run.family):
        raise UserError(f"policy.model of run '{run_directory}': {problem}")
    return run


@dataclass(frozen=True)
class Batch:
    """Images that could be decoded, and their greedy captions before and after training."""

    ids: list[str]
    pictures: list[Image]
    base: list[str]
    trained: list[str]


class RunPolicy:
    """The policy of a trained run, or a model as it is, without an adapter."""

    def __init__(self, run: Run, run_directory: Path | None) -> None:
        """run_directory: of the adapter; None: there is none."""
        self.run = run
        policy = run.policy.model_dump(exclude={"instruct", "lora"})
        model, self.processor = load.load_policy(run.family, **policy)
        self.adapted = run_directory is not None
        if run_directory is not None:
            model = load_adapter(model, whole(run_directory / "adapter"))
        self.model = model
        engine = run.engine.model_dump()
        self.vision_cache = build_vision_cache(self.model, self.processor, run.family, **engine)

    @cached_property
    def reference(self) -> ReferencePolicy:
        """The policy before training, which reads captions."""
        policy, length = self.run.policy, int(self.run.train["max_completion_length"])
        return ReferencePolicy(
            self.model,
            self.processor,
            policy.model,
            prompt=self.run.data.prompt,
            instruct=policy.instruct,
            max_new_tokens=length,
            family=self.vision_cache.family if self.vision_cache else None,
        )

    def batches(self, images: ImageFolder, console: Console) -> Iterator[Batch]:
        """Both captions of every image that can be decoded; the others are named and left out."""
        for ids, pictures in decoded(images, "captioning", console):
            with self.before_training():
                base = [c.text for c in self.captions(pictures)]
            trained = [c.text for c in self.captions(pictures)]
            yield Batch(ids, pictures, base, trained)

    def before_training(self) -> AbstractContextManager[Any]:
        """As long as this lasts, the policy is what it was before training."""
        return self.model.disable_adapter() if self.adapted else nullcontext()  # type: ignore[no-any-return]

    def captions(self, pictures: Sequence[Image], **sampling: Any) -> list[captioner.Caption]:
        """A caption of each image, greedy; sampling: `temperature` for one that is sampled."""
        return captioner.caption(
            self.model,
            self.processor,
            pictures,
            self.run.data.prompt,
            max_new_tokens=int(self.run.train["max_completion_length"]),
            vision_cache=self.vision_cache,
            **sampling,
        )


def decoded(
    images: ImageFolder, doing: str, console: Console
) -> Iterator[tuple[list[str], list[Image]]]:
    """Ids and images by IMAGE_BATCH, with a bar; what cannot be decoded is named and left out.

    UserError where nothing can.
    """
    usable = 0
    starts = range(0, len(images.ids), IMAGE_BATCH)
    for start in track(starts, doing, console=console, transient=True):
        batch = dict(_decoded(images, images.ids[start : start + IMAGE_BATCH], console))
        usable += len(batch)
        if batch:
            yield list(batch), list(batch.values())
    if not usable:
        raise UserError(f"not one of {len(images.ids)} images can be used")


def _decoded(
    images: ImageFolder, ids: Sequence[str], console: Console
) -> Iterator[tuple[str, Image]]:
    for image_id in ids:
        try:
            yield image_id, images.load(image_id)
        except ImageError as error:
            console.print(f"Left out: {printable(str(error))}", soft_wrap=True)
