"""Launch of a training on several devices: checked here, started by Accelerate's launcher.

Each process is the same command without the flags of a launch; the first prints and writes.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError, path_not_found

SHARDED = ("FSDP", "DEEPSPEED")  # Accelerate's names of what spreads weights; both need CUDA
ALLOWED = ("MULTI_GPU", *SHARDED)  # of others the launcher starts a single process, or none
FILE_VARIABLE = "VIZER_ACCELERATE"  # tells each process the --accelerate that it was started with
SPOKEN = (0, 2, 130, 143)  # exit codes of a process that has itself said why


def is_launched() -> bool:
    """Whether this process is one of several that a launcher has started."""
    return "RANK" in os.environ


def devices_flag() -> str:
    """` --devices N`, and --accelerate, in one of N processes that were started here, else ""."""
    count, file = os.environ.get("LOCAL_WORLD_SIZE", "1"), os.environ.get(FILE_VARIABLE, "")
    if count != os.environ.get("WORLD_SIZE") or (count == "1" and not file):
        return ""
    return f" {_flags(count, file)}"


def _flags(count: str | int, file: str | Path | None) -> str:
    """What starts as many processes, in the same way, on a command line."""
    return f"--devices {count}" + (f" --accelerate {shlex.quote(str(file))}" if file else "")


def devices_here() -> tuple[int, str]:
    """How many devices a run can take here, and what they are."""
    if torch.cuda.is_available():
        return torch.cuda.device_count(), "CUDA devices"
    return os.cpu_count() or 1, "CPU cores, for there is no CUDA device"


def processes(devices: str | None, file: Path | None) -> int:
    """How many processes to start; UserError where they cannot be had.

    devices: as given, None for what `file`, a config of `accelerate launch`, names.
    """
    if is_launched():
        raise UserError(
            "--devices and --accelerate start the processes themselves: leave both out under "
            "torchrun or accelerate launch"
        )
    count, kind = devices_here()
    config = None if file is None else _config(file)
    given = str(config.num_processes) if devices is None and config else str(devices)
    if not given.isdecimal() or not 1 <= int(given) <= count:
        name = f"num_processes of {file}" if devices is None else "--devices (make: DEVICES=)"
        raise UserError(f"{name}: {given}; allowed: 1 to {count}, the {kind}")
    return int(given)


def launch(words: Sequence[str], count: int, file: Path | None) -> int:
    """Run `vizer-rl WORDS` in `count` processes; the exit code of the first that ended badly.

    Raises UserError where there is no launcher, where it cannot start what the file says, or where
    a process ended without a word.
    """
    from accelerate.utils import patch_environment
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    launcher = _launcher()
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the processes say it
    args = launcher.launch_command_parser().parse_args(launch_arguments(words, count, file))
    try:
        with patch_environment(**{FILE_VARIABLE: file or ""}):
            launcher.launch_command(args)
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _spoken(f"process {rank} of {count}", int(failure.exitcode), _flags(count, file))
    except subprocess.CalledProcessError as error:  # DeepSpeed's own starter
        return _spoken(f"the start of {count} processes", error.returncode, _flags(count, file))
    except ValueError as error:  # what Accelerate finds only when it starts
        if file is None:
            raise
        raise UserError(f"--accelerate {file}: {' '.join(str(error).split())}") from error
    return 0


def _spoken(subject: str, code: int, flags: str) -> int:
    """The exit code of processes that have said why they ended; UserError where they have not."""
    if code < 0:
        raise UserError(
            f"{subject} was ended by {signal.Signals(-code).name}; go on from the last checkpoint "
            f"with {flags} --resume"
        )
    if code not in SPOKEN:
        raise UserError(f"{subject} ended with exit code {code}")
    return code


def launch_arguments(words: Sequence[str], count: int, file: Path | None) -> list[str]:
    """The words behind `accelerate launch`; without a file it is DDP on this machine."""
    plain = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
    options = plain + ["--dynamo_backend", "no"] if file is None else ["--config_file", str(file)]
    one = ["--num_processes", str(count), "--main_process_port", "0"]  # 0: a port that is free
    return [*options, *one, "-m", "vizer_rl", *words]


def _launcher() -> Any:
    try:
        from accelerate.commands import launch as launcher
    except ImportError as error:
        raise UserError(
            f"Accelerate's launcher cannot be imported ({error}): run `make setup`, or start the "
            "processes with torchrun --nproc_per_node N -m vizer_rl train …"
        ) from error
    return launcher


def _config(file: Path) -> Any:
    """Accelerate's config in a file; UserError where it is none, or cannot be used here."""
    _launcher()
    from accelerate.commands.config.config_args import load_config_from_file

    if not file.is_file():
        raise UserError(f"--accelerate {path_not_found(file)}")
    try:
        config = load_config_from_file(str(file))
    except Exception as error:  # whatever YAML or Accelerate finds wrong with it
        text = " ".join(str(error).split())
        raise UserError(f"--accelerate {file}: no config of accelerate launch ({text})") from error
    kind = str(getattr(config.distributed_type, "value", config.distributed_type))
    if kind not in ALLOWED:
        raise UserError(
            f"--accelerate {file}: distributed_type {kind}; allowed: {', '.join(ALLOWED)}"
        )
    if kind == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise UserError(
            f"--accelerate {file} needs DeepSpeed, which is not installed: pip install deepspeed, "
            "or take experiments/accelerate/fsdp2.yaml, which torch alone can do"
        )
    if kind in SHARDED and not torch.cuda.is_available():
        raise UserError(
            f"--accelerate {file}: {kind} needs CUDA devices; on CPUs Accelerate shards nothing "
            "and says nothing: leave --accelerate out, for DDP"
        )
    if config.num_machines > 1:
        raise UserError(
            f"--accelerate {file} is of {config.num_machines} machines: on each start `accelerate "
            f"launch --config_file {file} --machine_rank N …` (docs/scale.md)"
        )
    return config


def check_precision(args: Any) -> None:
    """UserError where Accelerate's FSDP2 would round log-probs: it casts what a model returns."""
    if args.bf16 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise UserError(
            "train.bf16: true; allowed under FSDP: false, for Accelerate rounds the log-probs that "
            "a model returns to bfloat16. policy.dtype=bfloat16 keeps the frozen weights small"
        )


def step_sentence(args: Any) -> str:
    """What a step of several processes learns from, and the override that makes it one's."""
    count, group = args.world_size, args.num_generations
    size, passes = args.per_device_train_batch_size, args.gradient_accumulation_steps
    line = (
        f"{count} processes: a step learns from {count * size * passes} captions of "
        f"{count * size * passes // group} images, {count} times those of one process"
    )
    whole = args.steps_per_generation == passes  # else a rollout is not a step's
    if whole and passes % count == 0:
        return f"{line}; train.gradient_accumulation_steps={passes // count} makes it the same step"
    if whole and size % count == 0 and size // count * passes % group == 0:
        less = size // count
        return f"{line}; train.per_device_train_batch_size={less} makes it the same step"
    return line
