"""Static key-value cache: room for all columns from the start, so that nothing is ever copied."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache, DynamicLayer


class StaticKVLayer(DynamicLayer):
    """Keys and values (R, heads, C, d) of a layer, in buffers of all C columns.

    New ones are put behind those there are, and a view of these comes back: nothing is copied. With
    `write_columns` (n,) they go there and all C come back: every shape is static then.
    """

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns, self.filled = columns, 0
        self.write_columns: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.buffers = [
            x.new_zeros(*x.shape[:2], self.columns, x.shape[3]) for x in (key_states, value_states)
        ]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.buffers
        if self.write_columns is not None:
            keys.index_copy_(2, self.write_columns, key_states)
            values.index_copy_(2, self.write_columns, value_states)
            return keys, values
        begin, self.filled = self.filled, self.filled + key_states.shape[2]
        keys[:, :, begin : self.filled] = key_states
        values[:, :, begin : self.filled] = value_states
        return keys[:, :, : self.filled], values[:, :, : self.filled]

    def get_seq_length(self) -> int:
        return self.filled

    def batch_select_indices(self, indices: Tensor) -> None:
        self.buffers = [buffer[indices] for buffer in self.buffers]


class StaticKVCache(Cache):
    """An empty StaticKVLayer of so many columns for each layer of the language model."""

    def __init__(self, layers: int, columns: int) -> None:
        super().__init__(layers=[StaticKVLayer(columns) for _ in range(layers)])

    def write_to(self, columns: Tensor | None) -> None:
        """Where new keys and values go from now on: columns (n,), or behind those there are."""
        for layer in self.layers:
            layer.write_columns = columns

    def columns(self, chosen: range) -> list[list[Tensor]]:
        """Of each layer a copy of keys and values (R, heads, n, d) of n columns."""
        span = slice(chosen.start, chosen.stop)
        return [[x[:, :, span].clone() for x in layer.buffers] for layer in self.layers]


def static_kv_cache(model: Any, columns: int) -> StaticKVCache:
    """An empty cache with so many columns in every layer of the language model."""
    return StaticKVCache(model.config.get_text_config().num_hidden_layers, columns)
