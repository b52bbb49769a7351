"""Where a step's time goes: seconds per phase, logged with every step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback


class StepTimer(TrainerCallback):
    """Counts seconds per phase and notes them as time/<phase> when an optimizer step is done.

    A phase inside another counts for itself alone, so the phases of a step add up. On CUDA a phase
    ends when its kernels have. Also noted: tokens/per_second, each computed once; on CUDA mfu, the
    share of `peak_flops` (per second) that the language model's `flops` were, and peak memory.
    """

    def __init__(self, note: Callable[[str, float], None], peak_flops: float | None) -> None:
        self.note, self.peak_flops = note, peak_flops
        self.tokens = self.flops = 0.0  # of this step
        self.seconds: dict[str, float] = defaultdict(float)
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
        total = sum(self.seconds.values())
        if self.tokens:
            self.note("tokens/per_second", self.tokens / total)
        if self.peak_flops and self.flops:
            self.note("mfu", self.flops / total / self.peak_flops)
        if torch.cuda.is_available():
            self.note("memory/peak_gib", torch.cuda.max_memory_allocated() / 2**30)
            torch.cuda.reset_peak_memory_stats()
        self.seconds.clear()
        self.tokens = self.flops = 0.0


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
