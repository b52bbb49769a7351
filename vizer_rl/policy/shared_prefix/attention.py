"""Who sees whom in a row of captions behind their prompts, and which kernel computes it.

PyTorch's SDPA takes a dense mask. FlexAttention takes the rule itself and skips blocks in which
nothing is seen: most of a row where captions are many. Which of them is faster is measured.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PROMPT, PADDING = 0, -1  # of `branch`; the captions of a group count from 1
ROWS = "shared_prefix"  # what transformers calls `attend`
ALIGN = 8  # lengths are multiples of it: CUDA's kernels take such a dense mask without copying it
BLOCK = 128  # of a block mask: FlexAttention compiles anew for lengths it does not know, so few
LONG = 512  # positions: in shorter rows attention is a small part of a step
WARM, ROUNDS = 2, 3  # of a contest: two that compile, three that count


def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, seen: Any, **more: Any) -> Any:
    """An attention function of transformers: a block mask goes to FlexAttention, others to SDPA."""
    if not isinstance(seen, BlockMask):
        return sdpa_attention_forward(module, query, key, value, seen, **more)
    groups = module.num_key_value_groups
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves them in float32
    output = flex()(query, key, value, block_mask=seen, scale=more["scaling"])
    return output.transpose(1, 2).contiguous(), None


@functools.cache
def flex() -> Callable[..., Tensor]:
    """FlexAttention, compiled once. Without a score_mod, which beside a block mask gives NaN for
    some lengths (pytorch#153799), so not by transformers' own way."""
    return torch.compile(flex_attention)


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


def by_blocks(model: Any) -> bool:
    """Whether the model's rows go through FlexAttention."""
    return bool(model.config.get_text_config()._attn_implementation == ROWS)


def faster_kernel(model: Any, once: Callable[[], Any]) -> dict[str, float]:
    """Leave a model with the kernel under which `once`, its way there and back, takes less time.

    Returns the seconds of either.
    """
    seconds = {}
    for kernel in ("sdpa", ROWS):
        model.set_attn_implementation({"text_config": kernel})
        taken = []
        for _ in range(WARM + ROUNDS):
            began = time.perf_counter()
            try:
                once()
            except RuntimeError as error:
                hint = "engine.cuda=off does without the choice of a kernel"
                raise RuntimeError(f"rows of captions fail under {kernel}; {hint}") from error
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
        seconds[kernel] = min(taken[WARM:])
    model.set_attn_implementation({"text_config": min(seconds, key=lambda k: seconds[k])})
    return seconds
