"""Where a sampler's keys and values stand, and its step as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicLayer

WARM = 2  # steps run as they are before one is recorded, as kernels and workspaces need it
WORTH = 8  # tokens per caption: below, recording costs more than it saves


class Columns(DynamicLayer):
    """Keys and values (R, heads, C, d) of a layer; room for all C columns is made at the start.

    New ones are put behind those there are, and a view of these comes back: nothing is copied. With
    `at`, a tensor (n,) of columns, they go there and all C come back: every shape is fixed then.
    """

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns, self.filled = columns, 0
        self.at: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.room = [
            x.new_zeros(*x.shape[:2], self.columns, x.shape[3]) for x in (key_states, value_states)
        ]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = (key_states, value_states)
        if self.at is not None:
            for room, states in zip(self.room, new, strict=True):
                room.index_copy_(2, self.at, states)
            return self.room[0], self.room[1]
        begin, self.filled = self.filled, self.filled + key_states.shape[2]
        for room, states in zip(self.room, new, strict=True):
            room[:, :, begin : self.filled] = states
        return self.room[0][:, :, : self.filled], self.room[1][:, :, : self.filled]

    def get_seq_length(self) -> int:
        return self.filled

    def batch_select_indices(self, indices: Tensor) -> None:
        self.room = [room[indices] for room in self.room]


def room_for(model: Any, columns: int) -> Cache:
    """An empty cache with so many columns in every layer of the language model."""
    layers = model.config.get_text_config().num_hidden_layers
    return Cache(layers=[Columns(columns) for _ in range(layers)])


class Replayed:
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
