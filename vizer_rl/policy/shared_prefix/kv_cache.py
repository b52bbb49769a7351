"""Where a sampler's keys and values stand, and its step as a CUDA graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache, DynamicLayer


class StaticKVLayer(DynamicLayer):
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


def static_kv_cache(model: Any, columns: int) -> Cache:
    """An empty cache with so many columns in every layer of the language model."""
    layers = model.config.get_text_config().num_hidden_layers
    return Cache(layers=[StaticKVLayer(columns) for _ in range(layers)])
