"""Data that ships with the package: two policies, two scorers (experiments/embedded), run files."""

from pathlib import Path

ASSETS = Path(__file__).parent
POLICIES = ("smolvlm", "qwen2vl")
SCORERS = ("scorer-a", "scorer-b")  # `embedded:a`, `embedded:b` in a run file
EMBEDDED = (*POLICIES, *SCORERS)
RUN_FILES = ASSETS / "run_files"  # links to experiments/*.yaml, which a wheel has as files
