"""Algorithms that a run file may name, and the trainer class of each."""

from __future__ import annotations

import importlib
from typing import Any

ALGORITHMS = {
    "grpo": "vizer_rl.algorithms.grpo:GRPO",
    "rloo": "vizer_rl.algorithms.rloo:RLOO",
    "ppo": "vizer_rl.algorithms.ppo:PPO",
    "raft": "vizer_rl.algorithms.raft:RAFT",
    "vizer": "vizer_rl.algorithms.vizer:ViZer",
}


def find(name: str) -> Any:
    """The trainer class of this algorithm."""
    module, _, attribute = ALGORITHMS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
