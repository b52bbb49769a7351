"""Hidden states of prompts, images and captions, in forward passes of bounded size.

An image with its prompt is encoded once per forward pass, however many captions it has: the vision
features are handed to the model with each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from rewards.lib.images import image_hash

from ..data.perturb import VIEWS
from .chat import adds_special_tokens, answer_text, chat_text, messages
from .families import FAMILIES
from .load import end_id
from .vision import (
    ImageInputs,
    encode_images,
    feature_inputs,
    join_images,
    process_images,
    takes_features,
    token_type_inputs,
    tower_inputs,
)

TOKEN_TYPES = {family.token_types for family in FAMILIES.values()}
TOKENS = 8192  # in one forward pass of the language model, padding included


@dataclass
class _Batch:
    """Rows of one forward pass: their tokens, the images, and the key of each row's image."""

    rows: list[list[int]] = field(default_factory=list)
    images: dict[str, ImageInputs] = field(default_factory=dict)
    image_keys: list[str] = field(default_factory=list)

    def holds(self, length: int) -> bool:
        """Whether a row of this length still fits."""
        longest = max(length, *map(len, self.rows), 0)
        return not self.rows or longest * (len(self.rows) + 1) <= TOKENS


def check_view(view: str, images: Sequence[Image] | None) -> None:
    """ValueError for a view that there is not, or one that does not fit to having images."""
    if view not in (*VIEWS, "text"):
        raise ValueError(f"view {view!r} is unknown: there are {', '.join(VIEWS)}, text")
    if (images is None) != (view == "text"):
        raise ValueError(f"view {view!r} {'takes no' if images is not None else 'needs'} images")


def hidden_states(
    model: Any,
    processor: Any,
    chats: Sequence[str],
    completions: Sequence[list[int]],
    images: Sequence[Image] | None,
    view: str,
) -> Iterator[Tensor]:
    """Per row the last hidden states (L, D) of all its tokens, the completion's being the last.

    chats: the text before, with the processor's image token in it where there are images;
    completions: token ids; view: a key of VIEWS. The model is as it stands: mode, adapter, grad.
    """
    batch, last, key = _Batch(), None, ""
    token, tokenizer = str(processor.image_token), processor.tokenizer
    for row, (chat, completion) in enumerate(zip(chats, completions, strict=True)):
        if images is None:
            inputs = None
            special = adds_special_tokens(processor, chat)
            text_ids = tokenizer(chat, add_special_tokens=special)["input_ids"] if chat else []
            row_ids = [*text_ids, *completion]
        else:
            image, (before, _, after) = images[row], chat.partition(token)
            if image is not last:
                last, key = image, image_hash(image)
            inputs = batch.images.get(key)
            if inputs is None:
                (inputs,) = process_images(processor, [VIEWS[view](image)], [before + token])
            rest = tokenizer(after, add_special_tokens=False)["input_ids"]
            row_ids = [*inputs["ids"].tolist(), *rest, *completion]
        if not batch.holds(len(row_ids)):
            yield from _forward(model, batch)
            batch = _Batch()
        batch.rows.append(row_ids)
        if inputs is not None:
            batch.images[key] = inputs
            batch.image_keys.append(key)
    if batch.rows:
        yield from _forward(model, batch)


def _forward(model: Any, batch: _Batch) -> Iterator[Tensor]:
    """The model on the rows, padded on the right: causal attention never gets there."""
    device, longest = model.device, max(map(len, batch.rows))
    ids = torch.zeros(len(batch.rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, row_ids in enumerate(batch.rows):
        ids[row, : len(row_ids)], mask[row, : len(row_ids)] = torch.tensor(row_ids), 1
    inputs: dict[str, Any] = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    if batch.images:
        inputs |= _image_inputs(model, batch)
        inputs |= token_type_inputs(model, inputs["input_ids"])
        if "image_grid_thw" in next(iter(batch.images.values())):
            grids = [batch.images[key]["image_grid_thw"] for key in batch.image_keys]
            inputs["image_grid_thw"] = torch.cat(grids).to(device)
    hidden = model.model(**inputs, use_cache=False).last_hidden_state
    for row, row_ids in enumerate(batch.rows):
        yield hidden[row, : len(row_ids)]


def _image_inputs(model: Any, batch: _Batch) -> dict[str, Any]:
    """What the model takes for the images of all rows: features, each image's computed once."""
    if not takes_features(model):
        pictures = [batch.images[key] for key in batch.image_keys]
        return join_images([tower_inputs(picture, model.device) for picture in pictures])
    encoded = encode_images(model, [*batch.images.values()])
    features = {key: f for key, (_, f) in zip(batch.images, encoded, strict=True)}
    return feature_inputs(model, [features[key] for key in batch.image_keys])


def token_states(
    model: Any, processor: Any, images: Sequence[Image], prompt: str, captions: Sequence[list[int]]
) -> tuple[Tensor, Tensor]:
    """What `CaptionForward` calls hidden (B, T, D), and the mask (B, T), of given captions.

    captions: token ids, each with its end. The model is as it stands: mode, adapter, gradient.
    """
    text = chat_text(processor, messages(prompt))
    inputs = processor(
        images=[[image] for image in images],
        text=[text] * len(images),
        add_special_tokens=adds_special_tokens(processor, text),
        padding=True,
        return_tensors="pt",
    )
    length = max(map(len, captions))
    ids = torch.tensor([c + [0] * (length - len(c)) for c in captions])
    mask = torch.tensor([[1] * len(c) + [0] * (length - len(c)) for c in captions])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], 1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], mask], 1)
    for name in TOKEN_TYPES & set(inputs):
        inputs[name] = torch.cat([inputs[name], inputs[name].new_zeros(ids.shape)], 1)
    backbone = model.get_base_model().base_model
    hidden = backbone(**inputs.to(model.device), use_cache=False).last_hidden_state
    return hidden[:, -length - 1 : -1], mask.to(model.device)


def caption_tokens(model: Any, processor: Any, prompt: str, caption: str) -> list[int]:
    """A given caption's token ids as the policy would have written them, with its end.

    What looks like a special token in it is none.
    """
    text = answer_text(processor, chat_text(processor, messages(prompt)), caption)
    ids: list[int] = processor.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ]
    return [*ids, end_id(model, processor)]
