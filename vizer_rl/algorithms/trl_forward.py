"""Stock log-probs and their hidden states: one row per completion, as TRL computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..policy.shared_prefix.packing import CaptionForward, unwrapped

VISION_KEYS = (  # what TRL's forward takes of its training batch, for the families we have
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "mm_token_type_ids",
)


def row_per_completion(
    log_probs: Callable[..., tuple[Any, ...]], model: Any, inputs: dict[str, Any]
) -> CaptionForward:
    """Log-probs and entropies (B, T) by TRL's own `log_probs`, with the states they came from.

    inputs: TRL's batch; log_probs: TRL's `_get_per_token_logps_and_entropies`.
    """
    ids = inputs["completion_ids"]
    states: list[Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        states.append(output.last_hidden_state[:, -ids.shape[1] - 1 : -1])

    hook = unwrapped(model).base_model.register_forward_hook(keep)
    try:
        logps, entropies, _ = log_probs(
            model,
            torch.cat([inputs["prompt_ids"], ids], 1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
            ids.shape[1],
            compute_entropy=True,
            **{name: inputs[name] for name in VISION_KEYS if name in inputs},
        )
    finally:
        hook.remove()
    return CaptionForward(logps, entropies, torch.cat(states))
