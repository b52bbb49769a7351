"""Out of memory in training: what needed it, what to change, and where the run can go on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..config.schema import Run
from ..errors import UserError
from .checkpoint import way_on
from .estimate import Machine, estimate
from .fitting import change_lines, changes, memory_lines

ALLOCATION = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)
SMALLER = 0.75  # of the estimate: what a change must come to where the estimate fits, and failed
PHASES = {  # of the step timer, as the estimate calls them
    "vision": "vision tower",
    "sample": "sampling",
    "rewards": "scoring",
    "reference": "reference and policy passes",
    "forward_backward": "reference and policy passes",
}


@contextmanager
def explained(run: Run, trainer: Any) -> Iterator[None]:
    """Turn an allocation that fails inside into a UserError with the run's estimate."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        phase, step = PHASES.get(trainer.timer.phase, "held-out evaluation"), trainer.state
        raise UserError(explanation(run, phase, step.global_step + 1)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation that failed is at the bottom of this error: of CUDA, or of a CPU."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(cause, RuntimeError) and ALLOCATION.search(str(cause)):
            return True
        cause = cause.__cause__
    return False


def explanation(run: Run, phase: str, step: int) -> str:
    """The phase, the estimate, what to change, and how to go on."""
    model, work = estimate(run, Machine.here(empty=True))
    whole = model.estimate(work)
    limit = int(whole.peak * SMALLER) if whole.fits else whole.available
    smaller = changes(run, model, work, limit)
    override = smaller[0].overrides if smaller else ""
    lines = [
        f"out of memory in step {step}, phase {phase}. The estimate of this run on this machine:",
        *(f"  {line}" for line in memory_lines(whole)),
        "What takes less:",
        *(f"  {line}" for line in change_lines(smaller, limit)),
        way_on(run.directory, override),
    ]
    return "\n".join(lines)
