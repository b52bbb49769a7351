"""Trained parts: what of vision tower, connector and language model learns, as one PEFT adapter.

A part that says lora gets LoRA in its linear layers. In one that says full each layer has a copy
that learns, beside the frozen one (PEFT's modules_to_save). So whatever learns is the adapter:
switched off it leaves the policy as it was before training, which KL, rewards and base captions
read; a checkpoint, the adapter that is kept and an export are a folder that plain PEFT loads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from ..errors import UserError
from .families import Family
from .lora import lora_config

PARTS = ("vision", "connector", "language")
DEFAULT = {"vision": "off", "connector": "off", "language": "lora"}  # of policy.train
ADAPTED = re.compile(r"\.(lora_[AB]|lora_embedding_[AB])\.")  # names of LoRA's weights
COPIED = ".modules_to_save."  # in the name of a weight of a copy that learns
FROZEN = ".original_module."  # in the name of the weight that it began as


def part_of(name: str, family: Family) -> str:
    """The one of PARTS that a module or weight of this dotted name belongs to, PEFT's or not."""
    name = name.removeprefix("base_model.model.")
    if family.connector and _inside(name, family.connector):
        return "connector"
    return "vision" if any(_inside(name, m) for m in family.vision_modules) else "language"


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def adapter_config(
    family: Family,
    train: Mapping[str, str],
    lora: Mapping[str, Any],
    model: Callable[[], Any],
) -> LoraConfig:
    """PEFT's config of what learns.

    train: a part of PARTS -> off, lora, full or, for the language model, qlora; lora: r, alpha and
    dropout; model: gives the policy without its adapter, for the names of its layers. Raises
    UserError where a part cannot learn in this way.
    """
    if train == DEFAULT or train == {**DEFAULT, "language": "qlora"}:
        return lora_config(family.lora, **lora)
    policy = model()
    patterns = [family.lora] if train["language"] in ("lora", "qlora") else []
    for part in ("vision", "connector"):
        if train[part] == "lora":
            patterns += _linear_layers(policy, part, family)
    whole = [part for part in PARTS if train[part] == "full"]
    names, tied = _layers(policy, whole, family)
    targets = "|".join(patterns) or DUMMY_TARGET_MODULES
    return lora_config(targets, **lora, modules_to_save=names or None, ensure_weight_tying=tied)


def _linear_layers(model: Any, part: str, family: Family) -> list[str]:
    """Regular expressions of the names of a part's linear layers, one for all blocks together."""
    names = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and part_of(name, family) == part
    ]
    if not names:
        raise UserError(f"policy.train.{part}: lora needs linear layers, and it has none")
    # the number of a block, not that of a layer in a Sequential, where an activation has one too
    blocks = [re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(name)) for name in names]
    return list(dict.fromkeys(blocks))


def _layers(model: Any, parts: list[str], family: Family) -> tuple[list[str], bool]:
    """The layers that hold weights of these parts, the outermost; whether embeddings are tied.

    Layers, not parts: containers, their configs and their lists of blocks stay as they are.
    """
    names, weights, tied = list[str](), set[int](), False
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if not own or part_of(name, family) not in parts or any(_inside(name, n) for n in names):
            continue
        if not all(p.is_floating_point() for p in own):
            part = part_of(name, family)
            raise UserError(
                f"policy.train.{part}: full; allowed: off or lora, for the weights of policy.model "
                "are quantised there and have no gradient"
            )
        if weights.issuperset(map(id, own)):
            tied = True  # the head that is the embeddings: PEFT ties their copies
            continue
        weights |= set(map(id, module.parameters()))
        names.append(name)
    return names, tied


def learning(modules: Iterable[nn.Module]) -> bool:
    """Whether any of these modules learns, or would if its adapter were not switched off."""
    return any(
        isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
        or any(p.requires_grad for p in module.parameters(recurse=False))
        for module in modules
    )


def copies(model: Any) -> Iterator[tuple[Any, Any]]:
    """Frozen layer and copy that learns, of all that is trained whole."""
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for copy in module.modules_to_save.values():
                yield module.original_module, copy


def keep_in_float32(model: Any) -> None:
    """Hold copies that learn in float32, and compute with them rounded to the type they had.

    bfloat16 has 8 bits: most updates of full tuning are smaller than that and would be lost. What
    is computed is what the saved adapter gives where plain PEFT loads it into the same type.
    """
    for original, copy in copies(model):
        dtype = next(original.parameters()).dtype
        if dtype != torch.float32 and "forward" not in vars(copy):
            twin = deepcopy(copy).to("meta")
            copy.float()
            copy.forward = partial(_rounded, copy, twin, dtype)


def _rounded(
    copy: nn.Module, twin: nn.Module, dtype: torch.dtype, *args: Any, **kwargs: Any
) -> Any:
    """The layer's output with its weights rounded to a type; twin: the layer without weights."""

    def cast(x: torch.Tensor) -> torch.Tensor:
        return x.to(dtype) if x.is_floating_point() else x

    weights = {name: cast(x) for name, x in (*copy.named_parameters(), *copy.named_buffers())}
    args, kwargs = tree_map_only(torch.Tensor, cast, (args, kwargs))
    return functional_call(twin, weights, args, kwargs)


@dataclass(frozen=True)
class PartCount:
    """A part of the policy: how many weights it has, and how many learn, by LoRA or whole."""

    part: str
    weights: int
    lora: int
    whole: int


def count_parts(model: Any, family: Family) -> list[PartCount]:
    """The counts of each of PARTS of a PeftModel; a tied weight is counted where it comes first."""
    counts = {part: [0, 0, 0] for part in PARTS}
    for name, p in model.named_parameters():
        kind = 1 if ADAPTED.search(name) else 2 if COPIED in name else 0
        state = getattr(p, "quant_state", None)  # bitsandbytes holds two weights in a byte
        size = p.numel() if state is None else state.shape.numel()
        counts[part_of(name, family)][kind] += size
    return [PartCount(part, *numbers) for part, numbers in counts.items()]
