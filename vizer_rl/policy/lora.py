"""LoRA adapters switched off and merged, without the price of PEFT's own ways.

PEFT's `disable_adapter` goes through all modules of the model three times, which takes longer than
a small model's forward; its merge and unmerge leave rounding errors behind in the weights.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer


def fast_disable_adapter(model: Any) -> None:
    """Give a PeftModel a `disable_adapter` that does the same to layers collected beforehand."""
    layers = _layers(model)

    @contextmanager
    def disable_adapter(_: Any) -> Iterator[None]:
        with _disabled(layers):
            yield

    model.disable_adapter = types.MethodType(disable_adapter, model)


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """All LoRA layers inside a module, a PeftModel or the model it wraps, switched off."""
    with _disabled(_layers(model)):
        yield


@contextmanager
def merged(model: Any) -> Iterator[None]:
    """Let base weights hold the adapter's part for as long as this lasts: one product, not three.

    Only in float32, where the sum is exact enough, and without dropout; else nothing happens. The
    weights are exchanged, not changed: afterwards they are what they were, to the last bit.
    """
    layers = _layers(model)
    if not all(_plain(layer) for layer in layers):
        yield
        return
    bases = [(layer.get_base_layer().weight, layer) for layer in layers]
    originals = [weight.data for weight, _ in bases]
    try:
        for weight, layer in bases:
            weight.data = weight.data + layer.get_delta_weight(layer.active_adapters[0])
        with _disabled(layers):
            yield
    finally:
        for (weight, _), data in zip(bases, originals, strict=True):
            weight.data = data


def _layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def _disabled(layers: list[Any]) -> Iterator[None]:
    enabled = [layer for layer in layers if not layer.disable_adapters]
    for layer in enabled:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in enabled:
            layer.enable_adapters(True)


def _plain(layer: Any) -> bool:
    """Whether it is LoRA as in the paper, on a linear layer in float32, switched on."""
    if not isinstance(layer, Linear) or layer.merged or layer.disable_adapters:
        return False
    names = layer.active_adapters
    return (
        len(names) == 1
        and not layer.lora_variant
        and isinstance(layer.lora_dropout[names[0]], torch.nn.Identity)
        and type(layer.get_base_layer()) is torch.nn.Linear
        and layer.get_base_layer().weight.dtype == torch.float32
    )
