"""Forward passes of TRL's models: prepared for packed rows, or stock, one row per completion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from ..policy.lora import fast_disable_adapter
from ..policy.shared_prefix.packing import CaptionForward, add_caption_head, unwrapped
from ..policy.vision import token_type_inputs
from ..scoring.reference_policy import ReferencePolicy

VISION_KEYS = (  # what TRL's forward takes of its training batch, for the families we have
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
)


def row_per_completion(
    log_probs: Callable[..., tuple[Any, ...]], model: Any, inputs: dict[str, Any]
) -> CaptionForward:
    """Log-probs and entropies (B, T) by TRL's own `log_probs`, with the states they came from.

    inputs: TRL's batch; log_probs: TRL's `_get_per_token_logps_and_entropies`.
    """
    ids = inputs["completion_ids"]
    input_ids = torch.cat([inputs["prompt_ids"], ids], 1)
    vision = {name: inputs[name] for name in VISION_KEYS if name in inputs}
    states: list[Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        states.append(output.last_hidden_state[:, -ids.shape[1] - 1 : -1])

    hook = unwrapped(model).base_model.register_forward_hook(keep)
    try:
        logps, entropies, _ = log_probs(
            model,
            input_ids,
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
            ids.shape[1],
            compute_entropy=True,
            **forward_arguments(model, input_ids, vision),
        )
    finally:
        hook.remove()
    return CaptionForward(logps, entropies, torch.cat(states))


def forward_arguments(model: Any, input_ids: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
    """TRL's arguments for its own forward, as it can take them and the model means them.

    `batch_num_images` (LLaVA-OneVision) it hands on and does not take: one a row is the default.
    `token_type_ids` are of just these tokens: TRL's are one to the left where both chat template
    and tokenizer put a BOS first (Gemma 3).
    """
    kwargs = {name: value for name, value in kwargs.items() if name != "batch_num_images"}
    if kwargs.get("token_type_ids") is None:
        return kwargs
    return kwargs | token_type_inputs(unwrapped(model), input_ids)


def offer_states(trainer: Any, completion_ids: list[list[int]]) -> None:
    """Offer rewards the states of TRL's pass of the reference: its last one before rewards.

    There are none without a KL (`beta` 0), and none where prompts are not shared.
    """
    policy, rollout = trainer.reward_functions.policy, trainer.rollout
    if isinstance(policy, ReferencePolicy):
        states = rollout.states if trainer.beta else None
        prompts = [rollout.prompts[index] for index in rollout.prompt_idx.tolist()]
        policy.offered.replace(rollout.images, completion_ids, states, prompts)


def take_packed_rows(model: Any, reference: Any | None, temperature: float) -> None:
    """Let policy and reference (None: the policy without its adapter) take packed rows."""
    if isinstance(model, PeftModel):
        fast_disable_adapter(model)
    for packed in (model, reference):
        if packed is not None:
            add_caption_head(unwrapped(packed), temperature)
