"""Reads prompts, images and captions with a model: hidden states, in passes that fit the memory.

An image with its prompt is worked out once per forward pass, however many captions it has: the
vision tower's output is handed to the model with each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from rewards.lib.images import image_hash

from ..data.perturb import VIEWS

TOKENS = 8192  # in one forward pass of the language model, padding included


@dataclass
class ImageInputs:
    """An image behind the text before it: its tokens, and what the vision tower is given."""

    ids: list[int]
    pixels: dict[str, torch.Tensor]


@dataclass
class _Pass:
    """Rows of one forward pass: their tokens, and which of its images each has, if any."""

    rows: list[list[int]] = field(default_factory=list)
    seen: dict[str, ImageInputs] = field(default_factory=dict)
    which: list[str] = field(default_factory=list)

    def holds(self, length: int) -> bool:
        """Whether a row of this length still fits."""
        longest = max(length, *map(len, self.rows), 0)
        return not self.rows or longest * (len(self.rows) + 1) <= TOKENS


def hidden_states(
    model: Any,
    processor: Any,
    chats: Sequence[str],
    said: Sequence[list[int]],
    images: Sequence[Image] | None,
    view: str,
) -> Iterator[torch.Tensor]:
    """Per row the last hidden states (L, D) of all its tokens, those of `said` being the last.

    chats: the text before, with the processor's image token in it where there are images;
    said: token ids; view: a key of `views.VIEWS`. The model is as it stands: mode, adapter, grad.
    """
    batch, last, name = _Pass(), None, ""
    token, tokenizer = str(processor.image_token), processor.tokenizer
    for row, (chat, ids) in enumerate(zip(chats, said, strict=True)):
        if images is None:
            row_ids, seen = [*(tokenizer(chat)["input_ids"] if chat else []), *ids], None
        else:
            image, (before, _, after) = images[row], chat.partition(token)
            if image is not last:
                last, name = image, image_hash(image)
            seen = batch.seen.get(name) or process_image(
                processor, VIEWS[view](image), before + token
            )
            rest = tokenizer(after, add_special_tokens=False)["input_ids"]
            row_ids = [*seen.ids, *rest, *ids]
        if not batch.holds(len(row_ids)):
            yield from _forward(model, batch)
            batch = _Pass()
        batch.rows.append(row_ids)
        if seen is not None:
            batch.seen[name] = seen
            batch.which.append(name)
    if batch.rows:
        yield from _forward(model, batch)


def _forward(model: Any, batch: _Pass) -> Iterator[torch.Tensor]:
    """The model on the rows, padded on the right: causal attention never looks there."""
    device, longest = model.device, max(map(len, batch.rows))
    ids = torch.zeros(len(batch.rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, told in enumerate(batch.rows):
        ids[row, : len(told)], mask[row, : len(told)] = torch.tensor(told), 1
    inputs: dict[str, Any] = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    if batch.seen:
        features = dict(zip(batch.seen, encode_images(model, [*batch.seen.values()]), strict=True))
        output = BaseModelOutputWithPooling(pooler_output=[features[n][1] for n in batch.which])
        inputs["mm_encoder_outputs"] = {"image": output}
        if "image_grid_thw" in next(iter(batch.seen.values())).pixels:
            grids = [batch.seen[n].pixels["image_grid_thw"] for n in batch.which]
            inputs["image_grid_thw"] = torch.cat(grids).to(device)
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).int()
    hidden = model.model(**inputs, use_cache=False).last_hidden_state
    for row, told in enumerate(batch.rows):
        yield hidden[row, : len(told)]


def process_image(processor: Any, image: Image, before: str) -> ImageInputs:
    """An image through the processor; `before`: the text up to it and its image token."""
    told = processor(images=[[image]], text=[before], return_tensors="pt")
    names = ("pixel_values", "pixel_attention_mask", "image_grid_thw")
    return ImageInputs(told["input_ids"][0].tolist(), {k: told[k] for k in names if k in told})


def encode_images(
    model: Any, seen: Sequence[ImageInputs]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per image the output of the vision tower (…, D), and what the language model reads (T, H)."""
    device, some = model.device, [s.pixels for s in seen]
    tower = model.model.get_image_features
    if "image_grid_thw" in some[0]:  # patches of all images one behind the other
        grids = torch.cat([s["image_grid_thw"] for s in some]).to(device)
        out = tower(torch.cat([s["pixel_values"] for s in some]).to(device), grids)
        hidden = out.last_hidden_state.split(grids.prod(-1).tolist())
        return list(zip(hidden, out.pooler_output, strict=True))
    tiles = [s["pixel_values"].shape[1] for s in some]  # each an image of its own to the tower
    pixels = torch.cat([s["pixel_values"][0] for s in some])[:, None].to(device)
    masks = [s["pixel_attention_mask"][0] for s in some if "pixel_attention_mask" in s]
    out = tower(pixels, torch.cat(masks)[:, None].to(device) if masks else None)
    read = torch.stack([*out.pooler_output]).split(tiles)
    hidden = out.last_hidden_state.split(tiles)
    return [(h, r.flatten(0, 1)) for h, r in zip(hidden, read, strict=True)]


def token_states(
    model: Any, processor: Any, images: Sequence[Image], prompt: str, captions: Sequence[list[int]]
) -> tuple[Tensor, Tensor]:
    """What `GRPO.caption_forward` calls hidden (B, T, D), and the mask (B, T), of given captions.

    captions: token ids, each with its end. The model is as it stands: mode, adapter, gradient.
    """
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    told = processor(
        images=[[image] for image in images],
        text=[text] * len(images),
        padding=True,
        return_tensors="pt",
    )
    length = max(map(len, captions))
    ids = torch.tensor([c + [0] * (length - len(c)) for c in captions])
    mask = torch.tensor([[1] * len(c) + [0] * (length - len(c)) for c in captions])
    told["input_ids"] = torch.cat([told["input_ids"], ids], 1)
    told["attention_mask"] = torch.cat([told["attention_mask"], mask], 1)
    if "mm_token_type_ids" in told:
        kinds = told["mm_token_type_ids"]
        told["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(ids.shape)], 1)
    backbone = model.get_base_model().base_model
    hidden = backbone(**told.to(model.device), use_cache=False).last_hidden_state
    return hidden[:, -length - 1 : -1], mask.to(model.device)


def caption_tokens(processor: Any, prompt: str, caption: str) -> list[int]:
    """A given caption's token ids as the policy would have written them, with its end."""
    tokenizer = processor.tokenizer
    chat = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    before = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    special = tuple(t.content for t in tokenizer.added_tokens_decoder.values() if t.special)
    lead = "" if before[-1:].isspace() or before.endswith(special) else " "
    ids: list[int] = tokenizer(lead + caption, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]
