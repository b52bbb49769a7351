"""Who sees whom in a row of captions behind their prompts, and which kernel computes it.

PyTorch's SDPA takes a dense mask. FlexAttention takes the rule itself and skips blocks in which
nothing is seen: most of a row where captions are many. Which of them is faster is measured.
"""

from __future__ import annotations

import time
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PROMPT, PADDING = 0, -1  # of `branch`; the captions of a group count from 1
ROWS = "shared_prefix"  # what transformers calls `attend`
LONG = 512  # positions: in shorter rows attention is a small part of a step
ROUNDS = 5  # of a contest, after two that compile


def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, seen: Any, **more: Any) -> Any:
    """An attention function of transformers: a block mask goes to FlexAttention, others to SDPA."""
    kernel = flex_attention_forward if isinstance(seen, BlockMask) else sdpa_attention_forward
    return kernel(module, query, key, value, seen, **more)


AttentionInterface.register(ROWS, attend)
AttentionMaskInterface.register(ROWS, sdpa_mask)


def mask(group: Tensor, branch: Tensor) -> Tensor:
    """(R, 1, N, N) bool: where a position of a row may look.

    It sees earlier ones of its group that are prompt or of its own branch; padding sees padding, so
    that no row of the softmax is empty.
    """
    length = group.shape[1]
    mine = group[:, :, None] == group[:, None, :]
    shared = (branch[:, None, :] == PROMPT) | (branch[:, :, None] == branch[:, None, :])
    earlier = torch.ones(length, length, dtype=torch.bool, device=group.device).tril()
    return (mine & shared & earlier)[:, None]


def block_mask(group: Tensor, branch: Tensor) -> BlockMask:
    """The same as a rule with the blocks that it leaves anything of."""

    def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        mine = group[row, query] == group[row, key]
        shared = (branch[row, key] == PROMPT) | (branch[row, query] == branch[row, key])
        return mine & shared & (query >= key)

    rows, length = group.shape
    return create_block_mask(sees, rows, None, length, length, device=group.device)


def model_inputs(positions: Tensor, seen: Any) -> dict[str, Any]:
    """`position_ids` and `attention_mask` in the form of the model: (K, R, N) and (R, 1, Q, N)."""
    if positions.shape[0] == 1:
        return {"position_ids": positions[0], "attention_mask": seen}
    return {"position_ids": positions, "attention_mask": {"full_attention": seen}}


def seen_by(model: Any, group: Tensor, branch: Tensor) -> Any:
    """The mask that the model's attention takes."""
    kernel = model.config.get_text_config()._attn_implementation
    return (block_mask if kernel == ROWS else mask)(group, branch)


def choose(model: Any, group: Tensor, branch: Tensor, dtype: torch.dtype) -> dict[str, float]:
    """Let the model take FlexAttention if rows like these go through it faster, there and back.

    group, branch (R, N) of a layout. Returns what a layer takes in seconds by either way; nothing
    where rows are shorter than LONG, which stay with SDPA.
    """
    if group.shape[1] < LONG:
        return {}
    config = model.config.get_text_config()
    heads, pairs = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    layer = types.SimpleNamespace(training=True, num_key_value_groups=heads // pairs)
    states = [
        torch.randn(len(group), n, group.shape[1], size, device=group.device, dtype=dtype)
        for n in (heads, pairs, pairs)
    ]
    query, key, value = (x.requires_grad_() for x in states)
    seconds = {}
    for name, seen in (("sdpa", mask(group, branch)), ("flex", block_mask(group, branch))):

        def once(seen: Any = seen) -> None:
            attend(layer, query, key, value, seen, scaling=size**-0.5)[0].sum().backward()

        try:
            seconds[name] = _shortest(once)
        except RuntimeError as error:
            hint = "engine.cuda=off does without FlexAttention"
            raise RuntimeError(f"{name} attention failed on rows of captions; {hint}") from error
    if seconds["flex"] < seconds["sdpa"]:
        model.set_attn_implementation({"text_config": ROWS})
    return seconds


def _shortest(once: Callable[[], None]) -> float:
    taken = []
    for _ in range(2 + ROUNDS):
        began = time.perf_counter()
        once()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return min(taken[2:])
