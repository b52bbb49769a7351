"""CUDA graph of a function whose shapes never change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARM = 2  # steps run as they are before one is recorded, as kernels and workspaces need it
WORTH = 8  # tokens per caption: below, recording costs more than it saves


class CudaGraph:
    """A function of tensors whose shapes never change: run WARM times, then as a CUDA graph.

    What it is given is copied to where the graph reads it; what it returns stands where the graph
    wrote it, until the next call. On a CPU it is run every time.
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
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.calls += 1
        if self.calls <= WARM or self.inputs[0].device.type != "cuda":
            return function(*self.inputs)
        if self.graph is None:
            self._record(function)
        self.graph.replay()
        return self.output

    def _record(self, function: Callable[..., Tensor]) -> None:
        self.graph = torch.cuda.CUDAGraph()
        try:  # a DataLoader's thread may pin memory meanwhile: that is no fault of this one's
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.output = function(*self.inputs)
        except RuntimeError as error:
            raise RuntimeError(
                "the sampling step cannot be made a CUDA graph; engine.cuda=off does without"
            ) from error
