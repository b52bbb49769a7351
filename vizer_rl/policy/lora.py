"""Adapters configured, loaded, switched off and merged, without the price of PEFT's own ways.

PEFT's `disable_adapter` goes through all modules of the model three times, which takes longer than
a small model's forward; its merge and unmerge leave rounding errors behind in the weights.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import UserError
from ..files import CHECKSUMS, damage, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DAMAGED = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError)


def load_adapter(model: Any, folder: Path) -> Any:
    """The model with the adapter of a folder, ready to be evaluated.

    Raises UserError where a file is missing or damaged, or the adapter is not of this model.
    """
    if (folder / CHECKSUMS).is_file() and (fault := damage(folder)):
        raise UserError(f"adapter '{folder}' is damaged: {fault}")
    read_json(folder / CONFIG, dict[str, Any])
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"'{folder / WEIGHTS}' cannot be read: {error}") from error
    try:
        adapted = PeftModel.from_pretrained(model, str(folder)).eval()
    except DAMAGED as error:  # PEFT has no class of its own for a config or shapes that do not fit
        reason = " ".join(str(error).split())
        raise UserError(f"adapter '{folder}' does not fit the policy: {reason:.300}") from error
    fitted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if differing := sorted(weights.keys() ^ fitted.keys()):
        raise UserError(
            f"adapter '{folder}' does not fit the policy: {len(differing)} weights are only in "
            f"one of them, the first: {differing[0]}"
        )
    return adapted


def lora_config(modules: str, r: int, alpha: int, dropout: float, **copies: Any) -> LoraConfig:
    """LoRA of rank r on the modules that a regular expression names.

    copies: PEFT's settings of modules that learn whole; without, nothing else learns.
    """
    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=modules,
        task_type="CAUSAL_LM",
        **copies,
    )


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
    """All that learns inside a module, a PeftModel or the model it wraps, switched off."""
    with _disabled(_layers(model)):
        yield


@contextmanager
def merged(model: Any) -> Iterator[None]:
    """Let base weights hold the adapter's part for as long as this lasts: one product, not three.

    Only in float32, where the sum is exact enough, and without dropout; else nothing happens. The
    weights are exchanged, not changed: afterwards they are what they were, to the last bit.
    """
    layers = [layer for layer in _layers(model) if isinstance(layer, BaseTunerLayer)]
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
    """LoRA layers, and layers beside which a copy learns."""
    kinds = BaseTunerLayer | AuxiliaryTrainingWrapper
    return [module for module in model.modules() if isinstance(module, kinds)]


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
