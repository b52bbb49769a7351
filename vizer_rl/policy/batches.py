"""Batch sizes by memory: rows that go through a model together, bounded by their bytes.

A fixed number of rows holds anything: 64 prompts of 15,000 image tokens are 27 GiB of keys and
values. Small rows are batched as they always were, so that their results do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import psutil
import torch

SHARE = 0.5  # of the free memory that a batch may take up
MIN_BUDGET = 2**29  # bytes: the batches of small policies do not depend on what else is running
MASKS = 5  # boolean masks of all pairs of positions that building one takes
STATES = 8  # tensors as wide as the model that a layer holds in prefill
GATES = 3  # tensors as wide as its MLP
LOGITS = 6  # float32 copies of a row's logits: raw, processed, softmax, log-softmax, noise, choice
TOWER = 32  # bytes that a vision tower holds per byte of pixels, at its own precision

Row = TypeVar("Row")


def row_bytes(config: Any, prompt_tokens: int, max_new_tokens: int, itemsize: int) -> int:
    """Bytes that a row takes up while it is captioned, image features included.

    config: of the language model; itemsize: bytes of a number at the model's precision. Counted are
    keys and values of prompt and caption, the attention mask in prefill, a layer's states, logits.
    """
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    tokens = prompt_tokens + max_new_tokens
    kv_cache = 2 * config.num_hidden_layers * kv_heads * width * tokens * itemsize
    mask = prompt_tokens**2 * (MASKS + itemsize)  # SDPA's kernels add it as numbers
    states = STATES * config.hidden_size + GATES * config.intermediate_size
    return kv_cache + mask + prompt_tokens * states * itemsize + LOGITS * config.vocab_size * 4


def memory_budget(free: int) -> int:
    """Bytes for a batch where so many are free: SHARE of them, as a power of two.

    So the same machine under about the same load forms the same batches; on CUDA a batch of another
    size may round otherwise. At no load are they fewer than MIN_BUDGET, which small policies never
    reach.
    """
    share = int(free * SHARE)
    return max(MIN_BUDGET, 2 ** max(0, share.bit_length() - 1))


def free_memory(device: torch.device) -> int:
    """Bytes that a device has free: with what PyTorch holds unused on CUDA; without swap here."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def batches(
    rows: Iterable[Row], size: Callable[[Row], int], budget: int, max_rows: int
) -> Iterator[list[Row]]:
    """Rows in batches of at most `max_rows`, in order, each row counted as large as the largest.

    size: bytes, or what `budget` counts. A row above the budget is a batch of its own. Rows are
    taken as they are needed, one ahead.
    """
    batch, largest = list[Row](), 0
    for row in rows:
        height = max(largest, size(row))
        if batch and (len(batch) == max_rows or height * (len(batch) + 1) > budget):
            yield batch
            batch, height = [], size(row)
        batch.append(row)
        largest = height
    if batch:
        yield batch
