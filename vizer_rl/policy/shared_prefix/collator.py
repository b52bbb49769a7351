"""Collate function of the data loader: chat prompts and images through the processor."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import get_worker_info

from ..chat import chat_text
from ..vision import ImageInputs, process_images

SHARED_MEMORY = Path("/dev/shm")  # what workers hand over lies here
SHARE = 0.5  # of what is free there that all workers may fill together
BATCHES = 2  # of a worker that lie there: one that waits, one that is worked on


@dataclass(frozen=True)
class OnHost:
    """What a worker has made of an image. A mapping accelerate would copy to the GPU, for each row
    of the group again; the vision cache takes it from the host and moves what it needs."""

    inputs: ImageInputs


class Collator:
    """Prompts in chat form and, as a DataLoader's collate function, images through the processor.

    In a worker that is ahead of the step. An image is processed once per batch, its rows share the
    result. What does not fit into shared memory is left to the process that trains.
    """

    def __init__(
        self,
        processor: Any,
        template: str | None,
        kwargs: dict[str, Any],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`template`: in place of the processor's own; `kwargs`: variables of the template.

        dtype: of pixels, that of the tower, which would round them itself.
        """
        self.processor, self.template, self.kwargs = processor, template, kwargs
        self.dtype = dtype
        self._texts: dict[str, str] = {}

    def text(self, prompt: Sequence[dict[str, Any]]) -> str:
        """A conversation in chat form, an image in its first question."""
        key = str(prompt)
        if key not in self._texts:
            self._texts[key] = chat_text(
                self.processor, prompt, template=self.template, **self.kwargs
            )
        return self._texts[key]

    def __call__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows, each with "image_inputs", OnHost: what the processor makes of image and prompt.

        Without, and with a warning, where a batch is too large for shared memory.
        """
        texts = [self.text(row["prompt"]) for row in rows]
        keys = [(row["image_id"], text) for row, text in zip(rows, texts, strict=True)]
        first = {key: n for n, key in reversed(list(enumerate(keys)))}
        images = [rows[n]["image"] for n in first.values()]
        inputs = process_images(self.processor, images, [texts[n] for n in first.values()])
        for x in inputs:
            x["pixel_values"] = x["pixel_values"].to(self.dtype)
        if not fits_shared_memory(inputs):
            return rows
        by_key = dict(zip(first, map(OnHost, inputs), strict=True))
        return [{**row, "image_inputs": by_key[key]} for row, key in zip(rows, keys, strict=True)]


def fits_shared_memory(inputs: Sequence[ImageInputs]) -> bool:
    """Whether a worker can hand these over while all others hand over as much; else a warning.

    True outside a worker, and on a system that has no /dev/shm.
    """
    worker = get_worker_info()
    if worker is None or not SHARED_MEMORY.is_dir():
        return True
    workers = worker.num_workers * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    size = sum(x.nbytes for row in inputs for x in row.values())
    free = shutil.disk_usage(SHARED_MEMORY).free
    if BATCHES * workers * size <= SHARE * free:
        return True
    warnings.warn(
        f"{workers} workers with {size / 1e6:,.0f} MB of images a batch do not fit into "
        f"{SHARED_MEMORY} ({free / 1e6:,.0f} MB free), so the process that trains reads them: "
        "start the container with --shm-size=8g or set train.dataloader_num_workers=0",
        stacklevel=2,
    )
    return False
