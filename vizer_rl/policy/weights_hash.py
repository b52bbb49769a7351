"""Hash of a model's weights: results computed with other weights are never taken for theirs."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import torch

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights_hash(parameters: Iterable[tuple[str, torch.Tensor]], *more: str) -> str:
    """16 hexadecimal digits that change with any of these named weights, and with `more`.

    Weights are added up as integers, by row and by column of each matrix: exact on every machine.
    """
    digest = blake2b("\n".join(more).encode(), digest_size=8)
    for name, tensor in parameters:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        bits = tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()])
        bits = bits.reshape(len(bits) if bits.ndim else 1, -1)
        for axis in (0, 1):
            digest.update(bits.sum(axis, dtype=torch.int64).cpu().numpy().tobytes())
    return digest.hexdigest()
