"""Attention masks for captions behind their shared prompts, and the kernel that takes them.

PyTorch's SDPA takes a dense mask. FlexAttention takes the rule itself and skips blocks that are
masked whole: most of a row where captions are many. The faster of them is chosen by measuring.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PROMPT, PADDING = 0, -1  # of `branch`; the captions of a group count from 1
KERNEL = "shared_prefix"  # the name of `attend` in transformers
ALIGN = 8  # lengths are multiples of it: CUDA's kernels take such a dense mask without copying it
BLOCK = 128  # of a block mask: FlexAttention compiles anew for lengths it does not know, so few
MIN_FLEX_LENGTH = 512  # positions: in shorter rows attention is a small part of a step
WARMUP_ROUNDS, TIMED_ROUNDS = 2, 3  # of `faster_kernel`: the first compile


def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    """An attention function of transformers: a block mask goes to FlexAttention, others to SDPA."""
    if not isinstance(mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    groups = module.num_key_value_groups
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves them in float32
    output = flex()(query, key, value, block_mask=mask, scale=kwargs["scaling"])
    return output.transpose(1, 2).contiguous(), None


@functools.cache
def flex() -> Callable[..., Tensor]:
    """FlexAttention, compiled once. Without a score_mod, which beside a block mask gives NaN for
    some lengths (pytorch#153799), so not by transformers' own way."""
    return torch.compile(flex_attention)


AttentionInterface.register(KERNEL, attend)
AttentionMaskInterface.register(KERNEL, sdpa_mask)


def attention_mask(group: Tensor, branch: Tensor) -> Tensor:
    """(R, 1, N, N) bool: the positions that each position of a row attends to.

    These are earlier ones of its group that are prompt or of its own branch; padding attends to
    padding, so that no row of the softmax is empty.
    """
    length = group.shape[1]
    same_group = group[:, :, None] == group[:, None, :]
    same_branch = (branch[:, None, :] == PROMPT) | (branch[:, :, None] == branch[:, None, :])
    earlier = torch.ones(length, length, dtype=torch.bool, device=group.device).tril()
    return (same_group & same_branch & earlier)[:, None]


def block_mask(group: Tensor, branch: Tensor) -> BlockMask:
    """The same mask as a rule, with the blocks that it does not mask whole."""

    def attends(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same_group = group[row, query] == group[row, key]
        same_branch = (branch[row, key] == PROMPT) | (branch[row, query] == branch[row, key])
        return same_group & same_branch & (query >= key)

    rows, length = group.shape
    return create_block_mask(attends, rows, None, length, length, device=group.device)


def model_inputs(positions: Tensor, mask: Any) -> dict[str, Any]:
    """`position_ids` and `attention_mask` in the form of the model: (K, R, N) and (R, 1, Q, N)."""
    return {
        "position_ids": positions[0] if positions.shape[0] == 1 else positions,
        "attention_mask": mask,
    }


def uses_block_mask(model: Any) -> bool:
    """Whether the model's attention goes through FlexAttention."""
    return bool(model.config.get_text_config()._attn_implementation == KERNEL)


def faster_kernel(
    model: Any, step: Callable[[], Any], warn: Callable[[str], object] = warnings.warn
) -> dict[str, float]:
    """Leave a model with the kernel under which `step`, a forward and backward pass, is faster.

    Returns the seconds under each. Where FlexAttention fails, as without a C compiler or Triton,
    the model stays on SDPA and `warn` takes a sentence; RuntimeError where SDPA itself fails.
    """
    seconds = {}
    for kernel in ("sdpa", KERNEL):
        model.set_attn_implementation({"text_config": kernel})
        try:
            seconds[kernel] = _seconds(step)
        except Exception as error:  # compilers raise errors of many kinds
            if kernel == "sdpa":
                hint = "engine.cuda=off does without the choice of a kernel"
                raise RuntimeError(f"rows of captions fail under sdpa; {hint}") from error
            cause = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
            warn(f"attention stays on sdpa, as FlexAttention fails on this machine: {cause}")
    model.set_attn_implementation({"text_config": min(seconds, key=lambda k: seconds[k])})
    return seconds


def _seconds(step: Callable[[], Any]) -> float:
    """Seconds of the fastest of TIMED_ROUNDS calls, after WARMUP_ROUNDS."""
    durations = []
    for _ in range(WARMUP_ROUNDS + TIMED_ROUNDS):
        began = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - began)
    return min(durations[WARMUP_ROUNDS:])
