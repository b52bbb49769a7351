"""Run directory: config, environment and held-out images, written by training and read back."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..data.sources import ImageFolder
from ..errors import UserError, path_not_found
from .licences import scorer_licences
from .overrides import read_yaml
from .schema import Run, raise_problems, type_problems


def read_run(directory: Path) -> Run:
    """The resolved run of a run directory; the files that it names are not checked."""
    path = directory / "config.yaml"
    if not path.is_file():
        raise UserError(f"run {path_not_found(path if directory.is_dir() else directory)}")
    settings = read_yaml(path)
    raise_problems(path, list(type_problems(settings)))
    return Run.model_validate(settings)


def read_heldout(run_directory: Path) -> dict[str, Any]:
    """{"source": folder, "ids": [...], "drawn": whether they are scenes}, written by training."""
    path = run_directory / "heldout.json"
    if not path.is_file():
        raise UserError(
            f"run '{run_directory}' has no heldout.json, which says what images to evaluate on"
        )
    heldout: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if not Path(heldout["source"]).is_dir():
        raise UserError(
            f"held-out images of run '{run_directory}': {path_not_found(Path(heldout['source']))}"
        )
    return heldout


def write_run_dir(run: Run, directory: Path, images: ImageFolder, heldout: ImageFolder) -> None:
    """Write config.yaml, environment.json, heldout.json and skipped.jsonl of a new run."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(run.to_yaml())
    names = ("torch", "transformers", "trl", "peft", "accelerate", "open_clip_torch", "wandb")
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    environment = {
        "command": " ".join(sys.argv),
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
    }
    (directory / "environment.json").write_text(json.dumps(environment, indent=1))
    drawn = run.data.images is None
    ids = {"source": str(heldout.root.resolve()), "ids": heldout.ids, "drawn": drawn}
    (directory / "heldout.json").write_text(json.dumps(ids))
    images.write_skipped(directory / "skipped.jsonl")
