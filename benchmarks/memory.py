"""Memory of training, measured against its estimate: `python -m benchmarks.memory [CASES]`.

Every case is a process of its own that takes two steps. On a CPU its peak is Linux's mark of the
highest resident memory, less what the process held before the policy was built, and it is measured
twice: with glibc giving freed blocks back, which is what tensors need, and with glibc as it is,
which keeps many of them (heap). On CUDA it is the allocator's.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from benchmarks import policies
from benchmarks.policies import SMALL, Shape
from benchmarks.side import PROMPT, Case, Side, lora_config
from vizer_rl.policy import chat
from vizer_rl.policy.fake_policy import FakePolicy
from vizer_rl.policy.vision import process_images
from vizer_rl.training.estimate import Workload, policy_phases
from vizer_rl.training.step_time import Rates, step_seconds

RESULTS = Path(__file__).parent / "results" / "memory.json"
WIDE = Shape(960, 16, 15, 5, 2560, 8192, 384, 6, 6, 1536)  # 160 M parameters
CHECKPOINTING = {"gradient_checkpointing": True}


def cases() -> dict[str, Case]:
    """Of each family: small and wide, few and many image tokens, both group sizes, both types."""
    smolvlm, qwen2vl = policies.shaped_smolvlm, policies.shaped_qwen2vl

    def tiles(shape: Shape, count: int, dtype: torch.dtype = policies.DTYPE) -> Any:
        return lambda: smolvlm(shape, 192, 12, 2, count, dtype)

    def square(shape: Shape, side: int, dtype: torch.dtype = policies.DTYPE) -> Any:
        return lambda: qwen2vl(shape, 12, side, dtype)

    low, bf16 = torch.bfloat16, {"bf16": True}
    return {
        case.name: case
        for family, make, few, many in (
            ("smolvlm", tiles, 2, 4),
            ("qwen2vl", square, 18, 33),
        )
        for case in (
            Case(f"{family}-small", family, make(SMALL, few)),
            Case(f"{family}-small-16", family, make(SMALL, few), group=16, words=48),
            Case(f"{family}-small-long", family, make(SMALL, many)),
            Case(f"{family}-small-long-ckpt", family, make(SMALL, many), settings=CHECKPOINTING),
            Case(f"{family}-wide", family, make(WIDE, few), words=48),
            Case(f"{family}-small-bf16", family, make(SMALL, few, low), words=48, settings=bf16),
        )
    }


def estimated(case: Case) -> dict[str, Any]:
    """The estimate of a case: its parts, its phases and their peak, in bytes."""
    model, processor, side = case.make()
    text = chat.chat_text(processor, chat.messages(PROMPT))
    (inputs,) = process_images(processor, policies.images(side, 1, 0), [text])
    lora, bf16 = lora_config(case), bool(case.settings.get("bf16", torch.cuda.is_available()))
    policy = FakePolicy(model.config, lora, model.dtype, bf16)
    work = Workload(
        prompt_tokens=len(inputs["ids"]),
        image_tokens=int((inputs["ids"] == model.config.image_token_id).sum()),
        pixels=inputs["pixel_values"].numel(),
        images=case.images,
        num_generations=case.group,
        batch=case.images * case.group,
        max_new_tokens=case.words,
        checkpointing=bool(case.settings.get("gradient_checkpointing")),
    )
    fixed = {"weights": policy.weights, "adapter and Adam": 3 * policy.adapter}
    phases = policy_phases(policy, work)
    peak = sum(fixed.values()) + max(sum(parts.values()) for parts in phases.values())
    seconds = step_seconds(policy, work, True, Rates.measured(policy.dtype))
    parts = {"fixed": fixed, "phases": phases, "peak": peak, "tokens": work.image_tokens}
    return {**parts, "estimated_seconds": seconds}


def measured(case: Case, steps: int = 2) -> tuple[float, float]:
    """Peak bytes of building and training a case, and the seconds of its last step."""
    with tempfile.TemporaryDirectory() as folder:
        warm = replace(case, make=lambda: policies.embedded(case.family), images=1, group=2)
        Side(warm, True, f"{folder}/warm").step()  # libraries are loaded, kernels are chosen
        _collect()
        before = _reset()
        side = Side(case, True, f"{folder}/case")
        for _ in range(steps):
            start = time.perf_counter()
            side.step()
        return _highest() - before, time.perf_counter() - start


def _collect() -> None:
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _reset() -> float:
    """Bytes that are held now; the peak starts from here."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _highest()


def _highest() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 2**10


def row(name: str) -> dict[str, Any]:
    """A case's estimate beside what processes of its own measure."""
    peak, _ = _process(name, {"MALLOC_MMAP_THRESHOLD_": str(2**18)})
    heap, seconds = _process(name, {})
    measured = {"measured": peak, "heap": heap, "seconds": seconds}
    return {"case": name, **estimated(cases()[name]), **measured}


def _process(name: str, environment: dict[str, str]) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.memory", "--measure", name]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    peak, seconds = json.loads(done.stdout.splitlines()[-1])
    return peak, seconds


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """The table: estimate over measured, of the whole and of what comes on top of the weights."""
    names = ("case", "tokens", "weights", "phase", "estimate", "measured", "ratio")
    table = Table(*names, "beyond weights", "heap", "step s", "s", title="MiB")
    for line in rows:
        phase = max(line["phases"], key=lambda name: sum(line["phases"][name].values()))
        weights = line["fixed"]["weights"]
        mib = [f"{x / 2**20:,.0f}" for x in (weights, line["peak"], line["measured"])]
        ratios = [(line["peak"] - x) / (line["measured"] - x) for x in (0, weights)]
        heap = line["heap"] / line["measured"]
        numbers = [f"{x:.2f}" for x in (*ratios, heap, line["estimated_seconds"], line["seconds"])]
        table.add_row(line["case"], str(line["tokens"]), mib[0], phase, *mib[1:], *numbers)
    console.print(table)


def main() -> None:
    """Measure the cases named, or all; print the table and write it to results/memory.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help="names of cases; without any, all")
    parser.add_argument("--measure", metavar="CASE", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if flags.measure:
        print(json.dumps(measured(cases()[flags.measure])))
        return
    unknown = [name for name in flags.cases if name not in cases()]
    if unknown:
        parser.error(f"unknown case {unknown[0]!r}; known: {', '.join(cases())}")
    rows = [row(name) for name in flags.cases or cases()]
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    console = Console()
    console.width = max(console.width, 110)
    show(rows, console)


if __name__ == "__main__":
    main()
