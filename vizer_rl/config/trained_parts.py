"""What can be wrong with policy.train beyond its types: combinations that cannot learn."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from ..policy.families import FAMILIES
from .problems import Problem, section_of
from .schema import TrainedParts

DEFAULT = TrainedParts().model_dump()


def trained_parts_problems(settings: dict[str, Any]) -> Iterator[Problem]:
    """One sentence for each part that cannot learn as policy.train says."""
    written = section_of(section_of(settings, "policy"), "train").items()
    parts = DEFAULT | {part: "off" if value is False else value for part, value in written}
    train, family = section_of(settings, "train"), settings.get("family")
    changed = ", ".join(f"{k}: {value}" for k, value in parts.items() if value != DEFAULT.get(k))
    if all(value == "off" for value in parts.values()):
        text = "all parts are off, so nothing would be learnt; allowed: lora or full in one"
        yield ("policy", "train"), text
    if train.get("use_vllm") is True and changed:
        text = "True; allowed: false, for vLLM is sent LoRA's weights of the language model alone"
        yield ("train", "use_vllm"), f"{text} (policy.train has {changed})"
    if train.get("value_trunk") == "adapter" and "full" in parts.values():
        text = "'adapter'; allowed: shared, for the critic would copy all that is full once more"
        yield ("train", "value_trunk"), f"{text} (policy.train has {changed})"
    unnamed = isinstance(family, str) and family in FAMILIES and not FAMILIES[family].connector
    if unnamed and parts["connector"] != "off":
        text = f"allowed: off, for family {family} has no connector of its own that could learn"
        yield ("policy", "train", "connector"), f"{parts['connector']!r}; {text}"


def missing_bits(settings: dict[str, Any]) -> Iterator[Problem]:
    """Weights of 4 bits on a machine that has no bitsandbytes."""
    train = section_of(section_of(settings, "policy"), "train")
    if train.get("language") == "qlora" and find_spec("bitsandbytes") is None:
        text = "'qlora'; bitsandbytes is not installed here: pip install bitsandbytes, or take lora"
        yield ("policy", "train", "language"), text
