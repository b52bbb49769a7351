"""Captions of images, decoded greedily or sampled, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image

from .batches import TOWER, batches, free_memory, memory_budget, row_bytes
from .chat import chat_text, messages
from .load import eos_ids, forbidden_ids
from .shared_prefix.sampler import sample
from .shared_prefix.vision_cache import VisionCache
from .vision import ImageInputs, join_images, process_images, token_type_inputs, tower_inputs

DECODED = 2**30  # bytes of decoded images that are held at a time


@dataclass(frozen=True)
class Caption:
    """A caption: its text, its token ids (with EOS, if it came to one)."""

    text: str
    ids: list[int]


@torch.no_grad()
def caption(
    model: Any,
    processor: Any,
    images: Sequence[Image],
    prompt: str,
    *,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    temperature: float = 0.0,
    batch_size: int = 64,
    vision_cache: VisionCache | None = None,
    sharded: bool = False,
) -> list[Caption]:
    """One caption for each image; temperature 0 is greedy. Special tokens are never sampled.

    At most `batch_size` rows go through the model together, fewer where they would take up more
    than `batches.memory_budget` of what is free. With a `vision_cache` an image that is in the
    cache is not encoded again; sharded: weights are spread over devices.
    """
    text = chat_text(processor, messages(prompt))
    generation = {
        "do_sample": bool(temperature),
        "temperature": temperature or None,
        "top_k": 0 if temperature else None,
        "top_p": 1.0 if temperature else None,
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens or None,
        "suppress_tokens": forbidden_ids(model, processor) or None,
        "pad_token_id": processor.tokenizer.pad_token_id,
    }
    budget, completions = memory_budget(free_memory(model.device)), list[list[int]]()

    def size(row: ImageInputs) -> int:
        return _row_bytes(model, row, max_new_tokens)

    if vision_cache is None:
        inputs = (process_images(processor, [image], [text])[0] for image in images)
        for batch in batches(inputs, size, budget, batch_size):
            completions += _generate(model, processor, batch, generation)
    else:
        for window in _decoded(images, batch_size):
            entries = vision_cache.entries(window, [text] * len(window), sharded=sharded)
            for batch in batches(entries, size, budget, batch_size):
                prompts, static = vision_cache.on_device(batch), vision_cache.cuda
                rows = range(len(batch))
                completions += sample(model, prompts, rows, static_shapes=static, **generation).ids
    captions = processor.tokenizer.batch_decode(completions, skip_special_tokens=True)
    return [Caption(c.strip(), ids) for c, ids in zip(captions, completions, strict=True)]


def _row_bytes(model: Any, row: ImageInputs, max_new_tokens: int) -> int:
    """Bytes of a row: what the language model takes up, and the tower where it is to encode it."""
    itemsize, pixels = model.dtype.itemsize, row.get("pixel_values")
    tower = 0 if pixels is None else TOWER * pixels.numel() * itemsize
    config = model.config.get_text_config()
    return row_bytes(config, len(row["ids"]), max_new_tokens, itemsize) + tower


def _decoded(images: Sequence[Image], limit: int) -> Iterator[list[Image]]:
    """The images by up to `limit`, and up to DECODED bytes of pixels."""
    return batches(images, lambda image: 3 * image.width * image.height, DECODED, limit)


def _generate(
    model: Any, processor: Any, rows: Sequence[ImageInputs], generation: dict[str, Any]
) -> list[list[int]]:
    """Completions as transformers generates them, one row each, padded on the left."""
    ids = [row["ids"] for row in rows]
    length, pad_id = max(map(len, ids)), processor.tokenizer.pad_token_id
    input_ids = torch.full((len(rows), length), pad_id)
    mask = torch.zeros_like(input_ids)
    for r, row in enumerate(ids):
        input_ids[r, length - len(row) :], mask[r, length - len(row) :] = row, 1
    inputs = {"input_ids": input_ids.to(model.device), "attention_mask": mask.to(model.device)}
    inputs |= join_images([tower_inputs(row, model.device) for row in rows])
    inputs |= token_type_inputs(model, inputs["input_ids"])
    end, completions = set(eos_ids(model, processor)), list[list[int]]()
    for row in model.generate(**inputs, **generation)[:, length:].tolist():
        completions.append(row[: next((k + 1 for k, i in enumerate(row) if i in end), None)])
    return completions
