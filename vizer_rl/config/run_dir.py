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
from ..errors import UserError, not_found
from .load import refuse
from .overrides import read_yaml
from .schema import Run, shape


def read_run(directory: Path) -> Run:
    """The run that was written to a run directory, as it was; nothing else is looked at."""
    path = directory / "config.yaml"
    if not path.is_file():
        raise UserError(f"run {not_found(path if directory.is_dir() else directory)}")
    settings = read_yaml(path)
    refuse(path, list(shape(settings)))
    return Run.model_validate(settings)


def read_heldout(run_directory: Path) -> dict[str, Any]:
    """{"source": folder, "ids": [...], "drawn": whether they are scenes}, as training wrote it."""
    path = run_directory / "heldout.json"
    if not path.is_file():
        raise UserError(
            f"run '{run_directory}' has no heldout.json, which says what images to evaluate on"
        )
    heldout: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if not Path(heldout["source"]).is_dir():
        raise UserError(
            f"held-out images of run '{run_directory}': {not_found(Path(heldout['source']))}"
        )
    return heldout


def describe(run: Run, directory: Path, images: ImageFolder, heldout: ImageFolder) -> None:
    """Write what was asked for and where it runs: config, environment, images left out."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(run.to_yaml())
    names = ("torch", "transformers", "trl", "peft", "accelerate", "open_clip_torch", "wandb")
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    about = {
        "command": " ".join(sys.argv),
        "commit": git.stdout.strip() or None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in names},
        "train_images": len(images.ids),
        "heldout_images": len(heldout.ids),
        "captions_read": run.mapper.captions,  # null: no caption of anybody's was read
    }
    (directory / "environment.json").write_text(json.dumps(about, indent=1))
    drawn = run.data.images is None
    held = {"source": str(heldout.root.resolve()), "ids": heldout.ids, "drawn": drawn}
    (directory / "heldout.json").write_text(json.dumps(held))
    images.write_skipped(directory / "skipped.jsonl")
