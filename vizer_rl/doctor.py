"""Environment report, `vizer-rl doctor`: what this machine can run, and why not.

A check that raises is reported as its result and stops no other.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import socket
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

from .assets import ASSETS, EMBEDDED
from .errors import user_message

if TYPE_CHECKING:
    from .config.schema import Run

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
MODULES = {"pyyaml": "yaml", "pillow": "PIL", "open_clip_torch": "open_clip"}
HUB_SECONDS = 2.0
SHARED_MEMORY = Path("/dev/shm")
MIN_SHARED_MEMORY = 1e9  # bytes; workers pass batches of images through it, containers give 64 MB
MIN_DISK = 2e9  # bytes; a run of profile scenes and its checkpoints take less
MARKS = {True: "[green]yes[/]", False: "[red]no[/]", None: "[yellow]–[/]"}


@dataclass(frozen=True)
class Finding:
    """The result of a check; `ok` is None where it is for information only."""

    name: str
    ok: bool | None
    detail: str


Check = Callable[[], Finding]


def doctor(run: Run | None = None) -> int:
    """Print what can run here and why not; returns 0 where profile scenes can run, else 1.

    run: what it needs is printed besides.
    """
    console = Console(highlight=False)
    packages = [run_check(r.name, partial(package, r)) for r in requirements()]
    assets = [run_check(name, partial(asset, name)) for name in EMBEDDED]
    required = [run_check("Python", python), *packages, *assets]
    cuda = run_check("CUDA", cuda_device)
    optional = [
        cuda,
        run_check("Apple GPU", apple_gpu),
        run_check("bfloat16", bfloat16),
        run_check("flash-attn", flash_attention),
        run_check("W&B", wandb_login),
        run_check("Hugging Face hub", hub),
        run_check("disk", disk),
        run_check("shared memory", shared_memory),
        run_check("CPU, memory", processor),
    ]
    table = Table(box=None, pad_edge=False)
    for column in ("check", "here", ""):
        table.add_column(column, overflow="fold")
    for finding in (*required, *optional):
        table.add_row(finding.name, MARKS[finding.ok], finding.detail.replace("[", r"\["))
    console.print(table)

    missing = [f.name for f in required if f.ok is False]
    broken = [f.name for f in required[: -len(assets)] if f.ok is False]
    why = "a CUDA device is here" if cuda.ok else "no CUDA device here"
    console.print(f"\nprofile auto is {'full' if cuda.ok else 'scenes'}: {why}")
    console.print(_sentence("profile scenes", missing))
    console.print(_sentence("profile full", broken + ([] if cuda.ok else ["CUDA"])))
    console.print(_sentence("caption, evaluate, rewards", broken))
    if run is not None:
        report_run(run, console)
    return 1 if missing else 0


def report_run(run: Run, console: Console) -> None:
    """Print what this run needs, one table after the other."""
    from .training.hub_files import table

    console.print(f"\n[bold]{run.name}[/]: {run.why_profile}")
    console.print(table(run))
    report_memory(run, console)


def report_memory(run: Run, console: Console) -> None:
    """Print memory and step time of a run on this machine; one sentence where its files lack."""
    from .training.fitting import report_fit

    try:
        report_fit(run, console)
    except Exception as error:
        if (message := user_message(error)) is None:
            raise
        console.print(f"memory and step time need the model's config and processor: {message}")


def _sentence(job: str, missing: list[str]) -> str:
    return f"{job}: " + (f"will not run: {', '.join(missing)}" if missing else "will run")


def run_check(name: str, check: Check) -> Finding:
    """The result of a check; where it raises, the error is why its subject cannot be used."""
    try:
        return check()
    except Exception as error:  # anything may be broken here: that is what is reported
        reason = " ".join(str(error).split()) or "no reason given"
        return Finding(name, False, f"{type(error).__name__}: {reason[:300]}")


def requirements() -> list[Requirement]:
    """The package's own requirements, without those of its extras."""
    try:
        lines = requires("vizer_rl") or []
    except PackageNotFoundError:
        lines = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    declared = [Requirement(line) for line in lines]
    needed = [r for r in declared if r.marker is None or r.marker.evaluate({"extra": ""})]
    return sorted(needed, key=lambda r: r.name.lower())


def package(requirement: Requirement) -> Finding:
    """A package: its version within the range, and whether it can be imported."""
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return Finding(requirement.name, False, f"not installed; wanted: {requirement.specifier}")
    if not requirement.specifier.contains(installed, prereleases=True):
        return Finding(requirement.name, False, f"{installed} is not in {requirement.specifier}")
    importlib.import_module(MODULES.get(requirement.name, requirement.name))
    return Finding(requirement.name, True, installed)


def python() -> Finding:
    number = platform.python_version()
    ok = (3, 11) <= tuple(int(n) for n in number.split(".")[:2]) < (3, 14)
    return Finding("Python", ok, number if ok else f"{number}; wanted: 3.11, 3.12 or 3.13")


def asset(name: str) -> Finding:
    """A checkpoint that ships with the package."""
    weights = list((ASSETS / name).glob("*.safetensors"))
    if not weights:
        return Finding(name, False, f"no weights in {ASSETS / name}: run `make scenes-assets`")
    size = sum(path.stat().st_size for path in weights)
    return Finding(name, True, f"embedded, {size / 1e6:.1f} MB")


def cuda_device() -> Finding:
    import torch

    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        more = f", one of {n}" if (n := torch.cuda.device_count()) > 1 else ""
        return Finding("CUDA", True, f"{device.name}, {device.total_memory / 2**30:.0f} GiB{more}")
    if torch.version.cuda is None:
        return Finding("CUDA", None, "this torch is built without CUDA")
    return Finding("CUDA", None, f"torch has CUDA {torch.version.cuda}, but finds no device")


def apple_gpu() -> Finding:
    import torch

    text = "there, but not used: runs take the CPU"
    return Finding("Apple GPU", None, text if torch.backends.mps.is_available() else "none")


def bfloat16() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("bfloat16", None, "only used with CUDA; float32 here")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Finding("bfloat16", True, "the GPU has it")
    return Finding("bfloat16", None, "the GPU lacks it: set policy.dtype=float32 train.bf16=false")


def flash_attention() -> Finding:
    if find_spec("flash_attn") is None:
        return Finding("flash-attn", None, "not installed; attention is torch's own (sdpa)")
    return Finding("flash-attn", True, version("flash_attn"))


def wandb_login() -> Finding:
    from .training.tracking import logged_in

    if logged_in():
        return Finding("W&B", True, "logged in: runs are logged online")
    return Finding("W&B", None, "not logged in: runs are logged to files, to be synced later")


def hub() -> Finding:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Finding("Hugging Face hub", None, "HF_HUB_OFFLINE is set: only what is cached here")
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), HUB_SECONDS).close()
    except OSError as error:
        why = f"no direct connection to {address.hostname}:{port} ({error}); scenes needs none"
        return Finding("Hugging Face hub", None, why)
    return Finding("Hugging Face hub", True, f"{address.hostname} answers")


def disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    detail = f"{free / 1e9:.1f} GB free in {Path.cwd()}"
    return Finding("disk", True if free > MIN_DISK else None, detail)


def shared_memory() -> Finding:
    """Whether data-loader workers can pass their batches on."""
    if not SHARED_MEMORY.is_dir():
        return Finding("shared memory", None, f"no {SHARED_MEMORY} on this system")
    size = shutil.disk_usage(SHARED_MEMORY).total
    detail = f"{size / 1e6:,.0f} MB in {SHARED_MEMORY}"
    if size >= MIN_SHARED_MEMORY:
        return Finding("shared memory", True, f"{detail}: data-loader workers fit")
    remedy = "start the container with --shm-size=8g or set train.dataloader_num_workers=0"
    return Finding("shared memory", None, f"{detail}, too little for data-loader workers: {remedy}")


def processor() -> Finding:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Finding("CPU, memory", True, f"{os.cpu_count()} cores, {memory / 2**30:.0f} GiB")
