"""Vision features: images through processor, tower and connector, by the one way there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

ImageInputs = dict[str, Tensor]  # of an image with its text: "ids" (P,), and what the tower takes
TOWER_INPUTS = ("pixel_values", "pixel_attention_mask", "image_grid_thw")


def process_images(
    processor: Any, images: Sequence[Image], texts: Sequence[str]
) -> list[ImageInputs]:
    """Token ids and pixels of each image with its text (in chat form), on the CPU.

    Pixels are float32, masks boolean; no tensor is a view of a larger one.
    """
    bos = processor.tokenizer.bos_token
    special = bos is None or not texts[0].startswith(bos)  # as apply_chat_template does
    inputs = processor(
        images=[[image] for image in images], text=list(texts), add_special_tokens=special
    )
    ids = [torch.tensor(row) for row in inputs["input_ids"]]
    pixels = inputs["pixel_values"]
    pixels = pixels if isinstance(pixels, Tensor) else [torch.as_tensor(p) for p in pixels]
    if "image_grid_thw" in inputs:  # patches of all images one behind the other
        grids = torch.as_tensor(inputs["image_grid_thw"])
        parts = torch.as_tensor(pixels).split(grids.prod(-1).tolist())
        return [
            {"ids": i, "pixel_values": p.clone(), "image_grid_thw": g[None]}
            for i, p, g in zip(ids, parts, grids, strict=True)
        ]
    masks = inputs["pixel_attention_mask"]
    return [
        {
            "ids": i,
            "pixel_values": p[None, :n].clone(),
            "pixel_attention_mask": m[None, :n].bool(),
        }
        for i, p, m, n in zip(ids, pixels, masks, map(_tiles, masks), strict=True)
    ]


def raw_size(image: Image) -> int:
    """Bytes of an image's pixels in float32 at its own size, as a processor holds them."""
    return 12 * image.width * image.height


def pixel_count(inputs: ImageInputs) -> int:
    """How many numbers of an image go through the tower."""
    return inputs["pixel_values"].numel()


def _tiles(mask: Tensor) -> int:
    """How many of an image's tiles (tiles, height, width) are not there to fill up the batch."""
    return int(mask.flatten(1).any(1).sum())


def tower_inputs(inputs: ImageInputs, device: torch.device) -> dict[str, Tensor]:
    """What the vision tower takes of an image, on a device; {} where only features were kept."""
    return {name: inputs[name].to(device) for name in TOWER_INPUTS if name in inputs}


def join_images(images: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What the tower takes, of several images, in one.

    Tiles (1, tiles, …) are filled up with zeros to the same number: the model leaves those out.
    """
    tiles = max(image["pixel_values"].shape[1] for image in images)

    def fill(x: Tensor) -> Tensor:
        if x.shape[1] == tiles or x.ndim < 4:
            return x
        return torch.cat([x, x.new_zeros(1, tiles - x.shape[1], *x.shape[2:])], 1)

    return {name: torch.cat([fill(image[name]) for image in images]) for name in images[0]}


def encode_images(model: Any, images: Sequence[ImageInputs]) -> list[tuple[Tensor, Tensor]]:
    """Per image the tower's last hidden states (…, D), and the connector's output (n, H).

    model: without wrappers. All images go through the tower in one batch.
    """
    joined = join_images([tower_inputs(image, model.device) for image in images])
    output = model.model.get_image_features(**joined)
    if "image_grid_thw" in joined:
        sizes = joined["image_grid_thw"].prod(-1).tolist()  # patches
    else:
        sizes = [image["pixel_values"].shape[1] for image in images]  # tiles
    states = output.last_hidden_state.split(sizes)
    return list(zip(states, output.pooler_output, strict=True))
