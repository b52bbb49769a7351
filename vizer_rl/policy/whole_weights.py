"""Whole weights on every device where they are spread (FSDP2, ZeRO-3): to sample and to score.

Devices sample captions of other lengths and ask the policy other questions, so each would gather
weights at other moments and wait for ever. Inside `whole_weights` nothing is gathered any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


@contextmanager
def whole_weights(model: Any) -> Iterator[None]:
    """Inside, each device holds all weights of the model; all devices have to enter together.

    Where weights are not spread nothing happens. With ZeRO-3 it was never run.
    """
    parts = _parts(model)
    if not parts:
        with _zero3(model):
            yield
        return
    parts[0]._get_fsdp_state()._lazy_init()  # the root first, as a part of it may be called alone
    try:
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def whole_state(model: Any) -> dict[str, Tensor] | None:
    """Inside `whole_weights`: all weights by name; None where the model's own state is whole."""
    return dict(model.named_parameters()) if _parts(model) else None


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be spread over devices, put together on each; all have to ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _parts(model: Any) -> list[Any]:
    if not torch.distributed.is_initialized():
        return []  # one process has all weights whole
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def _zero3(model: Any) -> Iterator[None]:
    alone = not torch.distributed.is_initialized()
    spread = [] if alone else [p for p in model.parameters() if hasattr(p, "ds_id")]
    if not spread:
        yield
        return
    import deepspeed  # type: ignore[import-not-found]

    with deepspeed.zero.GatheredParameters(spread):
        yield
