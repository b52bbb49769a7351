"""CUDA graph of a function whose shapes never change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARMUP_CALLS = 2  # run as they are before one is recorded, as kernels and workspaces need it
MIN_TOKENS = 8  # per caption: below, recording costs more than it saves


def can_record(x: Tensor) -> bool:
    """Whether what is done to a tensor can become a graph."""
    return x.is_cuda


class CudaGraph:
    """A function of tensors whose shapes never change: run WARMUP_CALLS times, then as a CUDA
    graph.

    Inputs are copied to where the graph reads them; the output stays where the graph wrote it,
    until the next call. On a CPU the function is run every time.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.inputs: list[Tensor] = []
        self.graph: Any = None
        self.output: Tensor

    def __call__(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """`function` is not kept, so that nothing it holds outlives its owner."""
        if not self.inputs:
            self.inputs = [x.clone(memory_format=torch.contiguous_format) for x in inputs]
        for static, new in zip(self.inputs, inputs, strict=True):
            static.copy_(new)
        self.calls += 1
        if self.calls <= WARMUP_CALLS or not can_record(self.inputs[0]):
            return function(*self.inputs)
        if self.graph is None:
            self._record(function)
        self.graph.replay()
        return self.output

    def _record(self, function: Callable[..., Tensor]) -> None:
        self.graph = torch.cuda.CUDAGraph()
        try:  # "thread_local": a DataLoader's thread may pin memory meanwhile
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.output = function(*self.inputs)
        except RuntimeError as error:
            raise RuntimeError(
                "the sampling step cannot be made a CUDA graph; engine.cuda=off does without"
            ) from error
