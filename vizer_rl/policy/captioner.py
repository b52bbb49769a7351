"""Captions of images by greedy decoding or sampling, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image

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
    features: VisionCache | None = None,
) -> list[Caption]:
    """One caption for each image; temperature 0 is greedy. Special tokens are never sampled.

    With `features` an image that they know is not looked at again.
    """
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    end, out = set(eos_ids(model, processor)), []
    asked = {
        "do_sample": bool(temperature),
        "temperature": temperature or None,
        "top_k": 0 if temperature else None,
        "top_p": 1.0 if temperature else None,
        "max_new_tokens": max_new_tokens,
        "suppress_tokens": forbidden_ids(model, processor) or None,
        "pad_token_id": processor.tokenizer.pad_token_id,
    }
    for start in range(0, len(images), batch_size):
        some = [images[i] for i in range(start, min(start + batch_size, len(images)))]
        if features is not None:
            prompts = features.prompts(some, [text] * len(some))
            out += sample(model, prompts, range(len(some)), fixed=features.cuda, **asked).ids
            continue
        inputs = processor(
            images=[[image] for image in some],
            text=[text] * len(some),
            padding=True,
            return_tensors="pt",
        )
        ids = model.generate(**inputs.to(model.device), **asked)
        for row in ids[:, inputs["input_ids"].shape[1] :].tolist():
            out.append(row[: next((k + 1 for k, i in enumerate(row) if i in end), len(row))])
    told = processor.tokenizer.batch_decode(out, skip_special_tokens=True)
    return [Caption(said.strip(), ids) for said, ids in zip(told, out, strict=True)]
