"""Where a step's time goes: seconds per phase, logged with every step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback


class Clock(TrainerCallback):
    """Counts seconds per phase and notes them as time/<phase> when an optimizer step is done.

    A phase inside another counts for itself alone, so the phases of a step add up. On CUDA a phase
    ends when its kernels have.
    """

    def __init__(self, note: Callable[[str, float], None]) -> None:
        self.note = note
        self.seconds: dict[str, float] = defaultdict(float)
        self.began = time.perf_counter()
        self._inner: list[float] = []
        self._optimizer = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._inner.append(0.0)
        began = time.perf_counter()
        try:
            yield
        finally:
            _wait()
            took = time.perf_counter() - began
            self.seconds[phase] += took - self._inner.pop()
            if self._inner:
                self._inner[-1] += took

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._optimizer = time.perf_counter()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        _wait()
        self.seconds["optimizer"] += time.perf_counter() - self._optimizer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for phase, seconds in self.seconds.items():
            self.note(f"time/{phase}", seconds)
        if torch.cuda.is_available():
            self.note("memory/peak_gib", torch.cuda.max_memory_allocated() / 2**30)
            torch.cuda.reset_peak_memory_stats()
        self.seconds.clear()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
