"""Run directory: config, environment and held-out images, written by training and read back."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field

from ..data.open_source import is_folder
from ..data.sources import ImageFolder
from ..errors import UserError, masked, path_not_found
from ..files import read_json, write_text
from .licences import scorer_licences
from .overrides import read_yaml
from .problems import raise_problems, section_of, type_problems
from .schema import Run
from .validate import name_problems


class _Heldout(BaseModel):
    source: str
    ids: list[str] = Field(min_length=1)
    drawn: bool


def read_run(directory: Path) -> Run:
    """The resolved run of a run directory; the files that it names are not checked."""
    path = directory / "config.yaml"
    if not path.is_file():
        raise UserError(f"run {path_not_found(path if directory.is_dir() else directory)}")
    settings = read_yaml(path)
    problems = [*type_problems(settings), *name_problems(settings)]
    length = section_of(settings, "train").get("max_completion_length")
    if type(length) is not int or length < 1:
        text = f"{length!r}; allowed: a whole number of at least 1"
        problems.append((("train", "max_completion_length"), text))
    raise_problems(path, problems)
    return Run.model_validate(settings)


def read_heldout(run_directory: Path) -> dict[str, Any]:
    """{"source": address, "ids": [...], "drawn": whether they are scenes}, written by training."""
    path = run_directory / "heldout.json"
    if not path.is_file():
        raise UserError(
            f"run '{run_directory}' has no heldout.json, which says what images to evaluate on"
        )
    heldout: dict[str, Any] = read_json(path, _Heldout).model_dump()
    if is_folder(heldout["source"]) and not Path(heldout["source"]).is_dir():
        raise UserError(
            f"held-out images of run '{run_directory}': {path_not_found(Path(heldout['source']))}"
        )
    return heldout


FREE = (  # settings that may differ where a run goes on
    *("name", "train.max_steps", "train.num_train_epochs", "train.save_", "train.logging_"),
    "train.dataloader_",  # workers read images ahead, in the order without
    *("monitor.interval", "monitor.on_alarm", "monitor.audit", "engine.", "tracking."),
    "train.gradient_checkpointing",
)
HASHES = ("data_hash", "policy_hash")
VERSIONS = ("commit", "torch", "transformers", "trl", "peft", "accelerate", "open_clip_torch")


def changed_settings(directory: Path, run: Run) -> tuple[list[str], bool]:
    """One line per setting that differs between the run of a directory and what goes on from it.

    The second is whether results are those of one run all the same.
    """
    old, new = (_flat(r.model_dump(mode="json")) for r in (read_run(directory), run))
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    lines = [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys]
    return lines, all(key.startswith(FREE) for key in keys)


def changed_environment(directory: Path, environment: dict[str, Any]) -> tuple[list[str], bool]:
    """The same of versions, which may differ, and of training images and policy, which may not."""
    path = directory / "environment.json"
    before = read_json(path, dict[str, Any]) if path.is_file() else {}
    keys = [k for k in (*HASHES, *VERSIONS) if before.get(k) != environment[k]]
    lines = [f"{key}: {before.get(key)} -> {environment[key]}" for key in keys]
    return lines, not {*HASHES} & {*keys}


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"section.key": value}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return flat


def describe_environment(
    run: Run, images: ImageFolder, heldout: ImageFolder, policy_hash: str
) -> dict[str, Any]:
    """What a run is made with: command, versions, device, hashes of training images and policy."""
    names = ("torch", "transformers", "trl", "peft", "accelerate", "open_clip_torch", "wandb")
    head = ["git", "rev-parse", "-q", "--verify", "HEAD"]
    git = subprocess.run(head, capture_output=True, text=True, check=False)
    data_hash = blake2b("\n".join(images.ids).encode("utf-8", "surrogateescape"), digest_size=8)
    return {
        "command": masked(" ".join(sys.argv)),
        "commit": git.stdout.strip() or None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in names},
        "train_images": len(images.ids),
        "heldout_images": len(heldout.ids),
        "scorer_licences": scorer_licences(run),
        "captions_read": run.mapper.captions,  # null: no caption file was read
        "data_hash": data_hash.hexdigest(),
        "policy_hash": policy_hash,
    }


def write_run_dir(
    run: Run,
    directory: Path,
    images: ImageFolder,
    heldout: ImageFolder,
    environment: dict[str, Any],
) -> None:
    """Write config.yaml, environment.json, heldout.json and skipped.jsonl of a run."""
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / "config.yaml", run.to_yaml())
    write_text(directory / "environment.json", json.dumps(environment, indent=1))
    drawn = run.data.images is None
    ids = {"source": heldout.address, "ids": heldout.ids, "drawn": drawn}
    write_text(directory / "heldout.json", json.dumps(ids))
    images.write_skipped(directory / "skipped.jsonl")
