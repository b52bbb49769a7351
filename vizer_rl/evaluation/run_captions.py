"""Captioner of a trained run, for other people's programs."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from PIL.Image import Image

from ..data.given import as_image
from .captioning.models import load_captioner
from .run_policy import IMAGE_BATCH, RunPolicy, trained_run


class Captioner:
    """Captions images with a run's policy, its adapter on: `Captioner.from_run(path)(images)`."""

    def __init__(self, policy: RunPolicy) -> None:
        self.policy = policy

    @classmethod
    def from_run(cls, path: str | Path) -> Captioner:
        """Load the policy of a run directory.

        UserError where it has no trained weights, or these are for another base.
        """
        directory = Path(path).expanduser()
        return cls(load_captioner(trained_run(directory), directory))

    def __call__(self, images: Iterable[str | Path | Image]) -> list[str]:
        """The greedy caption of each image, a file or an image of Pillow, in their order.

        Images are decoded a batch at a time. UserError names one that cannot be used.
        """
        captions, rest = list[str](), iter(images)
        while batch := [as_image(image) for image in islice(rest, IMAGE_BATCH)]:
            captions += [caption.text for caption in self.policy.captions(batch)]
        return captions
