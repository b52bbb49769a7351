"""Vision features: images through processor, tower and connector, by the one way there is."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from .batches import batches
from .chat import adds_special_tokens
from .families import family_of

ImageInputs = dict[str, Tensor]  # of an image with its text: "ids" (P,), and what the tower takes
STATES = "tower_states"  # the key of the tower's last hidden states, where those are kept
ENCODE_PIXELS = 20_000_000  # numbers that go through the tower together: 8 images of 512 tokens
TOWER_INPUTS = ("pixel_values", "pixel_attention_mask", "image_grid_thw", "image_sizes")


def process_images(
    processor: Any, images: Sequence[Image], texts: Sequence[str]
) -> list[ImageInputs]:
    """Token ids and pixels of each image with its text (in chat form), on the CPU.

    Pixels are float32, masks boolean; no tensor is a view of a larger one.
    """
    special = adds_special_tokens(processor, texts[0])
    inputs = processor(
        images=[[image] for image in images], text=list(texts), add_special_tokens=special
    )
    ids = [torch.tensor(row) for row in inputs["input_ids"]]
    parts = _of_each_image(processor, inputs, ids)
    return [{"ids": i, **part} for i, part in zip(ids, parts, strict=True)]


def _of_each_image(processor: Any, inputs: Any, ids: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """What the tower takes, image by image, of what the processor gives for all of them."""
    pixels = inputs["pixel_values"]
    if "image_grid_thw" in inputs:  # patches of all images one behind the other
        grids = torch.as_tensor(inputs["image_grid_thw"])
        patches = _tensor(pixels).split(grids.prod(-1).tolist())
        return [
            {"pixel_values": p.clone(), "image_grid_thw": g[None]}
            for p, g in zip(patches, grids, strict=True)
        ]
    if "pixel_attention_mask" in inputs:  # a row of tiles for each image, filled up
        masks = [torch.as_tensor(mask) for mask in inputs["pixel_attention_mask"]]
        return [
            {"pixel_values": p[None, :n].clone(), "pixel_attention_mask": m[None, :n].bool()}
            for p, m, n in zip(map(torch.as_tensor, pixels), masks, map(_tiles, masks), strict=True)
        ]
    if "image_sizes" in inputs:  # the same, and sizes say how many of them there are
        sizes = torch.as_tensor(inputs["image_sizes"])
        counts = [_grid_tiles(processor, size.tolist()) for size in sizes]
        return [
            {"pixel_values": p[None, :n].clone(), "image_sizes": s[None]}
            for p, s, n in zip(map(torch.as_tensor, pixels), sizes, counts, strict=True)
        ]
    token, per_tile = image_token_id(processor), int(processor.image_seq_length)
    counts = [int((row == token).sum()) // per_tile for row in ids]
    return [{"pixel_values": p.clone()} for p in _tensor(pixels).split(counts)]  # tiles likewise


def _tensor(pixels: Any) -> Tensor:
    """A tensor, or a list of them, as one."""
    return torch.stack(list(pixels)) if isinstance(pixels, list) else torch.as_tensor(pixels)


def image_token_id(processor: Any) -> int:
    """The token whose place an image's features take; the text's placeholder may be another one."""
    own = getattr(processor.tokenizer, "image_token_id", None)
    return int(processor.image_token_id if own is None else own)


def raw_size(image: Image) -> int:
    """Bytes of an image's pixels in float32 at its own size, as a processor holds them."""
    return 12 * image.width * image.height


def pixel_count(inputs: ImageInputs) -> int:
    """How many numbers of an image go through the tower."""
    return inputs["pixel_values"].numel()


def _tiles(mask: Tensor) -> int:
    """How many of an image's tiles (tiles, height, width) are not there to fill up the batch."""
    return int(mask.flatten(1).any(1).sum())


def _grid_tiles(processor: Any, size: Sequence[int]) -> int:
    """Tiles of an image of this (height, width): of the grid that fits best, and the whole."""
    images = processor.image_processor
    height, width = select_best_resolution(size, images.image_grid_pinpoints)
    edge = images.size["height"]
    return 1 + (height // edge) * (width // edge)


def tower_inputs(inputs: ImageInputs, device: torch.device) -> dict[str, Tensor]:
    """What the vision tower takes of an image, on a device; {} where only features were kept."""
    return {name: inputs[name].to(device) for name in TOWER_INPUTS if name in inputs}


def join_images(images: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What the tower takes, of several images, in one.

    Tiles (1, tiles, …) are filled up with zeros to the same number: the model leaves those out.
    Patches, and tiles without a row of their own, stand one behind the other.
    """
    tiles = max(image["pixel_values"].shape[1] for image in images)

    def fill(x: Tensor) -> Tensor:
        if x.shape[1] == tiles or x.ndim < 4:
            return x
        return torch.cat([x, x.new_zeros(1, tiles - x.shape[1], *x.shape[2:])], 1)

    return {name: torch.cat([fill(image[name]) for image in images]) for name in images[0]}


def encode_images(model: Any, images: Sequence[ImageInputs]) -> list[tuple[Tensor, Tensor]]:
    """Per image the tower's last hidden states (…, D), and its features (n, H).

    model: without wrappers. Images go through the tower together, up to ENCODE_PIXELS of them.
    Features are what the language model reads, H its width; where it reads some in deeper layers
    too (Qwen3-VL), those of each such layer follow and H is so many times as wide.
    """
    together = batches(images, pixel_count, ENCODE_PIXELS, len(images))
    return [pair for batch in together for pair in _encode_together(model, batch)]


def _encode_together(model: Any, images: Sequence[ImageInputs]) -> list[tuple[Tensor, Tensor]]:
    joined = join_images([tower_inputs(image, model.device) for image in images])
    output = model.model.get_image_features(**joined)
    pixels = [image["pixel_values"] for image in images]
    tiles = [p.shape[1] if p.ndim == 5 else len(p) for p in pixels]
    states = output.last_hidden_state.split(tiles)  # of Qwen2-VL and kin: patches
    features = output.pooler_output
    if isinstance(features, Tensor):
        features = [tile.flatten(0, 1) for tile in features.split(tiles)]
    deeper = getattr(output, "deepstack_features", None) or ()
    sizes = [len(f) for f in features]  # transformers 5.17 leaves the deeper ones in one piece
    layers = [features, *(d.split(sizes) if isinstance(d, Tensor) else d for d in deeper)]
    return list(
        zip(states, (torch.cat(parts, -1) for parts in zip(*layers, strict=True)), strict=True)
    )


def connect(model: Any, states: Sequence[Tensor]) -> list[Tensor]:
    """The connector's output (n, H) of each image's last hidden states of the tower (…, D).

    model: without wrappers, of a family with `connector_alone`; as it stands: adapter, gradient.
    """
    connector = model.get_submodule(family_of(model.config.model_type).connector)
    features = connector(torch.cat(list(states)))
    rows = len(features) / sum(map(len, states))  # of features per row of states
    return [part.flatten(0, -2) for part in features.split([round(rows * len(s)) for s in states])]


def takes_features(model: Any) -> bool:
    """Whether a model's forward takes features in place of pixels: transformers from 5.18 on.

    model: without wrappers. Before, it ignores them, and the image is lost without an error.
    """
    return "mm_encoder_outputs" in inspect.signature(model.model.forward).parameters


def feature_inputs(model: Any, features: Sequence[Tensor]) -> dict[str, Any]:
    """What a model's forward takes in place of pixels: the features of each image.

    model: without wrappers; features: as `encode_images` gives them.
    """
    width = model.config.get_text_config().hidden_size
    layers = [list(layer) for layer in zip(*(f.split(width, -1) for f in features), strict=True)]
    own: Any = layers[0]
    if family_of(model.config.model_type).stacked:
        own = torch.cat(own)[None]
    output = SimpleNamespace(pooler_output=own, deepstack_features=layers[1:])
    return {"mm_encoder_outputs": {"image": output}}


def image_inputs(model: Any, prompts: Sequence[Any]) -> dict[str, Any]:
    """What a model's forward takes for the images of prompts, each once, in this order.

    model: without wrappers; prompts: with `features` and `vision` as packing.Prompt has them.
    """
    features = [prompt.features for prompt in prompts]
    vision = [prompt.vision for prompt in prompts]
    if all(STATES in inputs for inputs in vision):
        features = connect(model, [inputs[STATES] for inputs in vision])
    if all(f is not None for f in features):
        return feature_inputs(model, features)
    return join_images(vision)


def token_type_inputs(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """What a model's forward takes to tell image tokens from text: `ids` (R, N), of any rows."""
    name = family_of(model.config.model_type).token_types
    return {name: (ids == model.config.image_token_id).int()} if name else {}
