"""Obstacles to a shared prefix: settings that rule it out, and a probe of the model itself.

Whether packed rows give what one row per caption gives depends on details of an architecture:
image tokens that attend both ways, windows, features in deeper layers. So the model that is loaded
is asked before it is relied on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

from ..chat import chat_text, messages
from ..families import FAMILIES
from ..vision import image_inputs, process_images, takes_features, token_type_inputs, tower_inputs
from .attention import attention_mask, model_inputs
from .packing import Prompt, layout, log_probs, unwrapped
from .vision_cache import VisionCache

PROBE_SIZE = (96, 64)  # pixels of its image, which holds a gradient
PROBE_CAPTIONS = ("a dog on the grass", "two people")
MAX_DIFFERENCE = {torch.float32: 1e-3}  # nats a token: rounding alone is below
MAX_HALF_DIFFERENCE = 0.1  # of bfloat16 and float16, whose logits are rounded to 1 in 256


@torch.no_grad()
def packing_difference(cache: VisionCache) -> float:
    """Mean |difference| of log-probs, packed against one row per caption, in nats a token.

    Of two captions behind one image, in evaluation mode, by the model that a cache is of.
    """
    model, processor = unwrapped(cache.model), cache.processor
    image = Image.linear_gradient("L").resize(PROBE_SIZE).convert("RGB")
    text = chat_text(processor, messages("Describe the image."))
    tokenize = processor.tokenizer
    captions = [tokenize(c, add_special_tokens=False)["input_ids"] for c in PROBE_CAPTIONS]
    was_training = model.training
    model.eval()
    try:
        packed = _packed(model, cache.prompts([image], [text]), captions)
        rows = torch.cat([_own_row(model, processor, image, text, c) for c in captions])
    finally:
        model.train(was_training)
        cache.hit_rate()  # the probe does not count
    return float((packed - rows).abs().mean())


def _packed(model: Any, prompts: Sequence[Prompt], captions: Sequence[list[int]]) -> Tensor:
    """(M,) log-probs of the captions' tokens, packed behind their one prompt."""
    packed = layout(prompts, [0] * len(captions), captions).to(model.device)
    states = model.model(
        input_ids=packed.ids,
        **model_inputs(packed.positions, attention_mask(packed.group, packed.branch)),
        **image_inputs(model, prompts),
        use_cache=False,
    ).last_hidden_state
    return _log_probs(model, states.flatten(0, 1)[packed.target_idx], [*chain(*captions)])


def _own_row(model: Any, processor: Any, image: Any, text: str, caption: list[int]) -> Tensor:
    """(T,) log-probs of a caption's tokens in a row of its own, as transformers computes it."""
    (inputs,) = process_images(processor, [image], [text])
    ids = torch.cat([inputs["ids"], torch.tensor(caption)])[None].to(model.device)
    states = model.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **token_type_inputs(model, ids),
        **tower_inputs(inputs, model.device),
        use_cache=False,
    ).last_hidden_state
    return _log_probs(model, states[0, -len(caption) - 1 : -1], caption)


def _log_probs(model: Any, hidden: Tensor, tokens: list[int]) -> Tensor:
    targets = torch.tensor(tokens, device=hidden.device)
    return log_probs(hidden, model.get_output_embeddings(), targets, 1.0)[0]


def probe_obstacle(cache: VisionCache) -> str:
    """Why the captions of a cache's model cannot share their prompt, by the probe, or ""."""
    model = unwrapped(cache.model)
    if not takes_features(model):
        return f"transformers {transformers.__version__} takes no features of images; 5.18 does"
    difference = packing_difference(cache)
    if difference <= MAX_DIFFERENCE.get(model.dtype, MAX_HALF_DIFFERENCE):
        return ""
    return (
        f"captions packed behind one prompt differ by {difference:.2g} nats a token from a row each"
    )


def shared_prefix_obstacle(family: str, attention: str, args: Any = None) -> str:
    """Why a group's captions cannot share their prompt, or "": attention kernel, TRL's config."""
    if not FAMILIES[family].shared_prefix:
        return f"family {family} does not fit the shared prefix"
    if attention != "sdpa":
        return f"policy.attn_implementation {attention} takes no mask of branches; sdpa does"
    if args and (args.use_transformers_continuous_batching or args.cache_implementation):
        return "train.use_transformers_continuous_batching and cache_implementation are TRL's"
    if args and {"num_beams", "num_return_sequences"} & set(args.generation_kwargs or ()):
        return "train.generation_kwargs asks for more than sampling"
    return ""


def build_vision_cache(
    model: Any,
    processor: Any,
    family: str,
    *,
    shared_prefix: str = "auto",
    cuda: str = "auto",
    vision_cache: str | None = None,
    args: Any = None,
    report: Callable[[str], object] = lambda sentence: None,
) -> VisionCache | None:
    """What lets a group share its prompt; None, the reason given to `report`, where it cannot.

    shared_prefix, cuda: "auto" or "off"; vision_cache: folder for features; args: TRL's config.
    """
    obstacle = "engine.shared_prefix is off"
    cache: VisionCache | None = None
    if shared_prefix != "off":
        attention = model.config.get_text_config()._attn_implementation
        obstacle = shared_prefix_obstacle(family, attention, args)
    if not obstacle:
        graphs = cuda == "auto" and model.device.type == "cuda"
        path = Path(vision_cache).expanduser() if vision_cache else None
        cache = VisionCache(model, processor, FAMILIES[family], folder=path, cuda=graphs)
        obstacle = probe_obstacle(cache)
    if obstacle:
        report(f"one row per caption, as TRL does it: {obstacle}")
        return None
    return cache
