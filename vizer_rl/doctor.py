"""`vizer-rl doctor`: what this machine can run, and why not. No check can break another."""

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
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

from .assets import ASSETS, EMBEDDED

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
MODULES = {"pyyaml": "yaml", "pillow": "PIL", "open_clip_torch": "open_clip"}
HUB_SECONDS = 2.0
LITTLE_DISK = 2e9  # bytes; a run with its checkpoints stays below in profile scenes
MARKS = {True: "[green]yes[/]", False: "[red]no[/]", None: "[yellow]–[/]"}


@dataclass(frozen=True)
class Finding:
    """What a check found; `good` is None where it is only worth knowing."""

    what: str
    good: bool | None
    told: str


Check = Callable[[], Finding]


def doctor() -> int:
    """Print what can run here and why not; returns 0 where profile scenes can run, else 1."""
    console = Console(highlight=False)
    packages = [examine(asked.name, partial(package, asked)) for asked in requirements()]
    assets = [examine(name, partial(asset, name)) for name in EMBEDDED]
    needed = [examine("Python", python), *packages, *assets]
    cuda = examine("CUDA", cuda_device)
    other = [
        cuda,
        examine("Apple GPU", apple_gpu),
        examine("bfloat16", bfloat16),
        examine("flash-attn", flash_attention),
        examine("W&B", wandb_login),
        examine("Hugging Face hub", hub),
        examine("disk", disk),
        examine("CPU, memory", processor),
    ]
    table = Table(box=None, pad_edge=False)
    for column in ("check", "here", ""):
        table.add_column(column, overflow="fold")
    for found in (*needed, *other):
        table.add_row(found.what, MARKS[found.good], found.told.replace("[", r"\["))
    console.print(table)

    missing = [found.what for found in needed if found.good is False]
    broken = [found.what for found in needed[: -len(assets)] if found.good is False]
    why = "a CUDA device is here" if cuda.good else "no CUDA device here"
    console.print(f"\nprofile auto is {'full' if cuda.good else 'scenes'}: {why}")
    console.print(_can("profile scenes", missing))
    console.print(_can("profile full", broken + ([] if cuda.good else ["CUDA"])))
    console.print(_can("caption, evaluate, rewards", broken))
    return 1 if missing else 0


def _can(what: str, missing: list[str]) -> str:
    return f"{what}: " + (f"will not run: {', '.join(missing)}" if missing else "will run")


def examine(what: str, check: Check) -> Finding:
    """What a check finds; one that raises has found that it cannot be used."""
    try:
        return check()
    except Exception as error:  # whatever is broken here is what the doctor is asked about
        said = " ".join(str(error).split()) or "no reason given"
        return Finding(what, False, f"{type(error).__name__}: {said[:300]}")


def requirements() -> list[Requirement]:
    """What the package asks for by name, without the tools of its developers."""
    try:
        lines = requires("vizer_rl") or []
    except PackageNotFoundError:
        lines = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    asked = [Requirement(line) for line in lines]
    needed = [r for r in asked if r.marker is None or r.marker.evaluate({"extra": ""})]
    return sorted(needed, key=lambda r: r.name.lower())


def package(asked: Requirement) -> Finding:
    """A package: its version within the range, and whether it can be imported."""
    try:
        here = version(asked.name)
    except PackageNotFoundError:
        return Finding(asked.name, False, f"not installed; wanted: {asked.specifier}")
    if not asked.specifier.contains(here, prereleases=True):
        return Finding(asked.name, False, f"{here} is not in {asked.specifier}")
    importlib.import_module(MODULES.get(asked.name, asked.name))
    return Finding(asked.name, True, here)


def python() -> Finding:
    here = platform.python_version()
    good = (3, 11) <= tuple(int(n) for n in here.split(".")[:2]) < (3, 14)
    return Finding("Python", good, here if good else f"{here}; wanted: 3.11, 3.12 or 3.13")


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

    there = torch.backends.mps.is_available()
    return Finding("Apple GPU", None, "there, but not used: runs take the CPU" if there else "none")


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
    told = f"{free / 1e9:.1f} GB free in {Path.cwd()}"
    return Finding("disk", True if free > LITTLE_DISK else None, told)


def processor() -> Finding:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Finding("CPU, memory", True, f"{os.cpu_count()} cores, {memory / 2**30:.0f} GiB")
