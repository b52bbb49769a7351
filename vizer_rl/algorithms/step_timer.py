"""Step timer: seconds per phase, tokens per second and MFU, logged with every step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback
from trl import GRPOConfig
from trl.trainer.utils import compute_flops_per_token, get_peak_flops


class StepTimer(TrainerCallback):
    """Adds up seconds per phase and logs them as time/<phase> when an optimizer step is done.

    A phase inside another counts for itself alone, so the phases of a step add up. On CUDA a phase
    ends when its kernels have. Also logged under engine/: tokens per second, each computed once; on
    CUDA the share of the device's peak FLOP/s that the language model had, and peak memory in GiB.
    phase: the innermost that is running, or in which an error arose.
    """

    def __init__(self, log_metric: Callable[[str, float], None], args: GRPOConfig) -> None:
        self.log_metric, self.peak_flops = log_metric, _peak_flops(args)
        self.tokens = self.flops = 0.0  # of this step
        self.phase = ""
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []
        self._optimizer = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._inner.append(0.0)
        start, outer, self.phase = time.perf_counter(), self.phase, phase
        try:
            yield
            self.phase = outer
        finally:
            _wait()
            seconds_taken = time.perf_counter() - start
            self.seconds[phase] += seconds_taken - self._inner.pop()
            if self._inner:
                self._inner[-1] += seconds_taken

    def count(self, unique: int, stock: int, prompts: int, config: Any, passes: int) -> None:
        """A rollout's tokens: `unique` with every prompt once, `stock` with one row per completion.

        config: of the language model, which computes each unique token in `passes` passes.
        """
        self.log_metric("engine/unique_token_share", unique / stock)
        self.tokens += unique
        self.flops += language_flops(unique, prompts, config, passes)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._optimizer = time.perf_counter()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        _wait()
        self.seconds["optimizer"] += time.perf_counter() - self._optimizer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for phase, seconds in self.seconds.items():
            self.log_metric(f"time/{phase}", seconds)
        total = sum(self.seconds.values())
        if self.tokens:
            self.log_metric("engine/tokens_per_second", self.tokens / total)
        if self.peak_flops and self.flops:
            self.log_metric("engine/mfu", self.flops / total / self.peak_flops)
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 2**30
            self.log_metric("engine/peak_memory_gib", peak)
            torch.cuda.reset_peak_memory_stats()
        self.seconds.clear()
        self.tokens = self.flops = 0.0


def language_flops(unique: int, prompts: int, config: Any, passes: float) -> float:
    """FLOPs of `unique` tokens behind so many prompts, each in `passes` passes; a backward is two.

    config: of the language model; vision tower and scorers are not among them.
    """
    return float(unique * compute_flops_per_token(config, int(unique / prompts)) * passes / 3)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_flops(args: GRPOConfig) -> float | None:
    """FLOP/s of the device at its best; None where that is not known, and on a CPU."""
    if args.use_cpu or not torch.cuda.is_available():
        return None
    return get_peak_flops(torch.cuda.get_device_name(), "float16" if args.fp16 else "bfloat16")
