"""Captions of images, decoded greedily or sampled, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image

from .chat import chat_text, messages
from .load import eos_ids, forbidden_ids
from .shared_prefix.sampler import sample
from .shared_prefix.vision_cache import VisionCache


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
    temperature: float = 0.0,
    batch_size: int = 64,
    vision_cache: VisionCache | None = None,
    sharded: bool = False,
) -> list[Caption]:
    """One caption for each image; temperature 0 is greedy. Special tokens are never sampled.

    With a `vision_cache` an image that is in the cache is not encoded again; sharded: weights are
    spread over devices.
    """
    text = chat_text(processor, messages(prompt))
    end, completions = set(eos_ids(model, processor)), list[list[int]]()
    generation = {
        "do_sample": bool(temperature),
        "temperature": temperature or None,
        "top_k": 0 if temperature else None,
        "top_p": 1.0 if temperature else None,
        "max_new_tokens": max_new_tokens,
        "suppress_tokens": forbidden_ids(model, processor) or None,
        "pad_token_id": processor.tokenizer.pad_token_id,
    }
    for start in range(0, len(images), batch_size):
        batch = [images[i] for i in range(start, min(start + batch_size, len(images)))]
        texts = [text] * len(batch)
        if vision_cache is not None:
            prompts = vision_cache.prompts(batch, texts, sharded=sharded)
            static = vision_cache.cuda
            sampled = sample(model, prompts, range(len(batch)), static_shapes=static, **generation)
            completions += sampled.ids
            continue
        pictures = [[image] for image in batch]
        inputs = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
        ids = model.generate(**inputs.to(model.device), **generation)
        for row in ids[:, inputs["input_ids"].shape[1] :].tolist():
            completions.append(row[: next((k + 1 for k, i in enumerate(row) if i in end), None)])
    captions = processor.tokenizer.batch_decode(completions, skip_special_tokens=True)
    return [Caption(c.strip(), ids) for c, ids in zip(captions, completions, strict=True)]
