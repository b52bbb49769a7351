"""Step time of a run by arithmetic: FLOPs over a measured matmul rate, decoding by bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..algorithms.step_timer import language_flops
from ..policy.fake_policy import FakePolicy
from .estimate import Workload

EFFICIENCY = (
    0.35  # of the rates below, in a step: benchmarks/memory.py, whose cases differ by ERROR
)
ERROR = 3.0  # a factor, wider than those two differ: other machines have not been measured
# Rows and columns of the product, bytes copied. A GPU of 8e14 FLOP/s takes 3 us for the first of
# these, less than to launch it and to wait for it; its cache holds much of the second.
MATMUL = {"cpu": 1024, "cuda": 8192}
COPIED = {"cpu": 2**26, "cuda": 2**28}
TIMED = 0.15  # seconds for each of the two


@dataclass(frozen=True)
class Rates:
    """flops: FLOP/s of a matrix product in the run's type; bandwidth: bytes/s read and written."""

    flops: float
    bandwidth: float

    @classmethod
    def measured(cls, dtype: torch.dtype) -> Rates:
        """Those of this machine, measured in a fraction of a second."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        rows, copied = MATMUL[device], COPIED[device]
        matrix = torch.ones(rows, rows, dtype=dtype, device=device)
        source = torch.ones(copied, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return cls(
            2 * rows**3 / _seconds(lambda: matrix @ matrix),
            2 * copied / _seconds(lambda: target.copy_(source)),
        )


def _seconds(call: Callable[[], object]) -> float:
    """Mean seconds of a call, over TIMED seconds of them."""
    call()
    _wait()
    begin, calls = time.perf_counter(), 0
    while time.perf_counter() - begin < TIMED:
        call()
        _wait()
        calls += 1
    return (time.perf_counter() - begin) / calls


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def step_seconds(policy: FakePolicy, work: Workload, reference: bool, rates: Rates) -> float:
    """Seconds of a step, every image new: sampling, passes of the loss, vision tower; no rewards.

    reference: whether there is a pass of the reference policy (train.beta above 0).
    """
    captions = work.images * work.num_generations
    unique = work.images * work.prompt_tokens + captions * work.max_new_tokens
    passes = 4 + reference + work.checkpointing  # sampling, forward, backward as two
    flops = language_flops(unique, work.images, policy.text, passes)
    flops += 2 * policy.tower * policy.patches(work.pixels) * work.images
    columns = work.prompt_tokens + work.num_generations * work.max_new_tokens
    read = policy.weights + policy.kv_cache(work.images, columns) / 2
    seconds = flops / rates.flops + work.max_new_tokens * read / rates.bandwidth
    return seconds / EFFICIENCY
