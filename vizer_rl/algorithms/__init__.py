"""The algorithms a run file may name, and where each stands."""

from __future__ import annotations

import importlib
from typing import Any

ALGORITHMS = {"grpo": "vizer_rl.algorithms.grpo:GRPO"}


def find(name: str) -> Any:
    """The trainer class of this algorithm."""
    module, _, attribute = ALGORITHMS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
