"""Benchmark of our trainer against stock TRL's GRPOTrainer: `make bench [CASES=shaped]`.

Both take steps in turns in one process, on the same weights, images, rewards and group size. A step
is processing, sampling, rewards, reference, loss, backward and optimizer. Memory is what a step
adds to what is loaded; on a CPU, by Linux, of the first step in a process of its own.
Policies of real size run on CUDA; on a CPU only where asked for by name, one image, one step, in
bfloat16 too.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from benchmarks import plot, policies
from benchmarks.side import Case, Side
from vizer_rl.assets import POLICIES

RESULTS = Path(__file__).parent / "results"
SIDES = ("ours", "trl")


def cases() -> dict[str, list[Case]]:
    """The cases by set: embedded, shaped, scaling and real."""
    on_gpu = torch.cuda.is_available()
    sizes: dict[str, Any] = {"images": 4, "steps": 5} if on_gpu else {"images": 1, "steps": 1}
    smolvlm, qwen2vl = policies.shaped_smolvlm, policies.shaped_qwen2vl

    def small(tiles: int) -> Callable[[], Any]:
        return lambda: smolvlm(policies.SMALL, 192, 12, 2, tiles)

    def real(tiles: int) -> Callable[[], Any]:
        return lambda: smolvlm(policies.SMOLVLM, 378, 14, 3, tiles, torch.bfloat16)

    def qwen(side: int) -> Callable[[], Any]:
        return lambda: qwen2vl(policies.QWEN2VL, 14, side, torch.bfloat16)

    own = [
        Case(f"embedded-{f}", f, partial(policies.embedded, f), images=8, words=0, steps=20)
        for f in POLICIES
    ]
    shaped = [
        Case("shaped-smolvlm", "smolvlm", small(2)),
        Case("shaped-qwen2vl", "qwen2vl", lambda: qwen2vl(policies.SMALL, 12, 18)),
    ]
    groups = [Case(f"group-{g}", "smolvlm", small(2), 1, g, steps=1) for g in (2, 4, 8, 16)]
    tiles = [Case(f"tiles-{n}", "smolvlm", small(n), images=1, steps=1) for n in (1, 2, 3, 4)]
    sides = [
        Case(f"tokens-{n**2}", "qwen2vl", partial(qwen2vl, policies.SMALL, 12, n), 1, steps=1)
        for n in (8, 37)
    ]
    big = [
        Case("real-smolvlm-256m", "smolvlm", policies.smolvlm_256m, **sizes, real=True),
        Case("real-smolvlm-500m", "smolvlm", policies.smolvlm_500m, **sizes, real=True),
        Case("real-smolvlm-1-tile", "smolvlm", real(1), **sizes, real=True),
        Case("real-smolvlm-17-tiles", "smolvlm", real(4), **sizes, real=True),
        Case("real-qwen2vl-256", "qwen2vl", qwen(16), **sizes, real=True),
        Case("real-qwen2vl-1024", "qwen2vl", qwen(32), **sizes, real=True),
    ]
    return {"embedded": own, "shaped": shaped, "scaling": groups + tiles + sides, "real": big}


Seconds = dict[str, dict[str, list[float]]]  # by side and phase


def run(case: Case) -> tuple[dict[str, Any], Seconds]:
    """One case: the row of the results, and of each side the seconds of each phase."""
    gc.collect()  # the trainers of the case before go round in circles
    seconds, peaks, difference, lengths, tokens, sampled = _steps(case)
    if not torch.cuda.is_available():
        peaks |= {name: _peak_of(case, name) for name in SIDES}
    share = (sum(lengths) + sampled) / (case.group * sum(lengths) + sampled)
    row: dict[str, Any] = {
        "case": case.name,
        "family": case.family,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "num_generations": case.group,
        "image_tokens": tokens,
    }
    for name in SIDES:
        step = statistics.median(seconds[name]["step"])
        row[name] = {
            "step_seconds": round(step, 4),
            "captions_per_second": round(case.images * case.group / step, 3),
            "peak_memory_mb": round(peaks[name], 1),
            "unique_token_share": round(share if name == "trl" else 1.0, 4),
        }
    row["speedup"] = round(row["trl"]["step_seconds"] / row["ours"]["step_seconds"], 2)
    row["memory_ratio"] = round(peaks["ours"] / max(peaks["trl"], 1e-9), 3)
    row["grad_rel_diff"] = difference
    return row, seconds


def _steps(case: Case) -> tuple[Seconds, dict[str, float], float, list[int], int, int]:
    """Take the steps of a case. Seconds; peaks in MiB; relative difference of the gradients; the
    prompts' lengths, an image's tokens and all tokens of the completions."""
    with tempfile.TemporaryDirectory() as folder:
        sides = {name: Side(case, name == "ours", f"{folder}/{name}") for name in SIDES}
        completions, ours = sides["ours"].gradient()
        _, stock = sides["trl"].gradient(completions)
        peaks: dict[str, float] = {}
        for side in sides.values():
            side.phases.clear()
        for _ in range(case.steps):
            for name, side in sides.items():
                peaks[name] = _added(side.step)
        prompts = sides["ours"].trainer.rollout.prompts
    seconds = {name: dict(side.phases) for name, side in sides.items()}
    lengths, sampled = [len(prompt.ids) for prompt in prompts], sum(map(len, completions))
    difference = float((ours - stock).norm() / stock.norm())
    return seconds, peaks, difference, lengths, len(prompts[0].features), sampled


def _peak_of(case: Case, side: str) -> float:
    """`peak` in a process of its own: here, memory that an earlier step freed would not count."""
    command = [sys.executable, "-m", "benchmarks.bench", "--peak", case.name, side]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def peak(case: Case, side: str) -> float:
    """`_added` of a first step."""
    with tempfile.TemporaryDirectory() as folder:
        return _added(Side(case, side == "ours", folder).step)


def _added(step: Callable[[], None]) -> float:
    """Memory that a step needs beyond what is loaded, in MiB."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark falls to what is there
    loaded = _highest()
    step()
    return _highest() - loaded


def _highest() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def save(row: dict[str, Any], order: list[str]) -> list[dict[str, Any]]:
    """Put a case's row in place of its last one, so that none is lost if a later case fails."""
    path = RESULTS / "latest.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    key = (row["case"], row["device"])
    rows = [r for r in rows if (r["case"], r["device"]) != key] + [row]
    rows.sort(key=lambda r: (r["device"], order.index(r["case"])))
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def show(console: Console, rows: list[tuple[dict[str, Any], Any]]) -> None:
    """The table: medians, and ranges of whole steps."""
    names = ("case", "G", "image tokens", "phase", "ours s", "TRL s", "speedup", "memory")
    table = Table(*names, title="Ours against TRL: median (range)")
    for row, seconds in rows:
        for phase in ("step", "sample", "rewards", "reference", "learn"):
            ours, trl = (_phase(seconds[name], phase) for name in SIDES)
            ratio = statistics.median(trl) / statistics.median(ours)
            first = phase == "step"
            table.add_row(
                row["case"] if first else "",
                str(row["num_generations"]) if first else "",
                str(row["image_tokens"]) if first else "",
                phase,
                _range(ours),
                _range(trl),
                f"{ratio:.1f}×",
                f"{row['memory_ratio']:.2f}" if first else "",
            )
    console.print(table)
    for row, _ in rows:
        difference, share = row["grad_rel_diff"], row["trl"]["unique_token_share"]
        text = f"gradient differs by {difference:.1e}; {share:.0%} of TRL's tokens"
        console.print(f"{row['case']}: {text}")


def _phase(seconds: dict[str, list[float]], phase: str) -> list[float]:
    """Seconds of a phase; reference and learn (loss, optimizer) are what rollout and step leave."""
    if phase == "reference":
        parts = zip(*(seconds[p] for p in ("rollout", "sample", "rewards")), strict=True)
        return [rollout - sample - rewards for rollout, sample, rewards in parts]
    if phase == "learn":
        pairs = zip(seconds["step"], seconds["rollout"], strict=True)
        return [step - rollout for step, rollout in pairs]
    return seconds[phase]


def _range(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} ({min(seconds):.3f}–{max(seconds):.3f})"


def main() -> None:
    """Run the cases named, print the table, write results and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help="embedded, shaped, scaling, real, or one case")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help="timed steps per case")
    flags = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    sets, console = cases(), Console()
    console.width = max(console.width, 110)
    by_name = {case.name: case for group in sets.values() for case in group}
    if flags.peak:
        console.print(peak(by_name[flags.peak[0]], flags.peak[1]))
        return
    names = flags.cases or list(sets)
    unknown = [name for name in names if name not in sets and name not in by_name]
    if unknown:
        parser.error(f"unknown case {unknown[0]!r}; known: {', '.join([*sets, *by_name])}")
    rows, results = [], list[dict[str, Any]]()
    for case in (c for name in names for c in sets.get(name) or [by_name[name]]):
        if case.real and not torch.cuda.is_available() and case.name not in names:
            console.print(f"{case.name}: no CUDA, left out; asked for by name it takes one image")
            continue
        if flags.steps:
            case = replace(case, steps=flags.steps)
        rows.append(run(case))
        results = save(rows[-1][0], [*by_name])
        ours, trl = rows[-1][0]["ours"], rows[-1][0]["trl"]
        console.print(f"{case.name}: {ours['step_seconds']} s, TRL {trl['step_seconds']} s")
    show(console, rows)
    plot.draw(results, RESULTS / "scaling.png")


if __name__ == "__main__":
    main()
