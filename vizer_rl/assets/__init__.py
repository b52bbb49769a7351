"""Embedded checkpoints, data only: two policies and two scorers, built by experiments/embedded."""

from pathlib import Path

ASSETS = Path(__file__).parent
POLICIES = ("smolvlm", "qwen2vl")
SCORERS = ("scorer-a", "scorer-b")  # `embedded:a`, `embedded:b` in a run file
EMBEDDED = (*POLICIES, *SCORERS)
