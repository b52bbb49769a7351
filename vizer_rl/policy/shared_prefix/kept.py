"""What the vision cache keeps of an image: the last result on its way that no update changes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..families import Family
from ..trained_parts import learning, part_of
from ..vision import STATES, tower_inputs
from .packing import Prompt

Kept = Literal["features", "states", "pixels"]  # the connector's output, the tower's, its inputs
Entry = dict[str, Tensor]  # "ids", "positions", and what Kept says


def vision_modules(model: Any, family: Family, *parts: str) -> list[nn.Module]:
    """All modules of these parts, "vision" (the tower) and "connector"; model: without wrappers."""
    return [
        module
        for root in family.vision_modules
        for name, module in model.get_submodule(root).named_modules(prefix=root)
        if part_of(name, family) in parts
    ]


def result_to_keep(model: Any, family: Family) -> Kept:
    """By what learns, and so the same whether its adapter is on or off."""
    if learning(vision_modules(model, family, "vision")):
        return "pixels"
    if not learning(vision_modules(model, family, "connector")):
        return "features"
    return "states" if family.connector_alone else "pixels"


def weights_behind(model: Any, family: Family, kept: Kept) -> list[nn.Parameter]:
    """The weights that what is kept was computed with."""
    parts = {"features": ("vision", "connector"), "states": ("vision",), "pixels": ()}[kept]
    modules = vision_modules(model, family, *parts)
    return [p for module in modules for p in module.parameters(recurse=False)]


def prompt_of(entry: Entry, device: torch.device) -> Prompt:
    """The prompt of an entry, what is kept of its image on the device."""
    features = entry.get("features")
    features = None if features is None else features.to(device, non_blocking=True)
    inputs = tower_inputs(entry, device)
    if STATES in entry:
        inputs[STATES] = entry[STATES].to(device, non_blocking=True)
    return Prompt(entry["ids"], entry["positions"], features, inputs)
