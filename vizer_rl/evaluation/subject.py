"""Subject of an evaluation: held-out images or others, their truth, where results go."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ..config.run_dir import read_heldout
from ..data.scenes import truth_of
from ..data.sources import ImageFolder, reopen_images
from ..errors import printable
from ..files import write_text
from .metrics.scene_facts import read_truth

OTHER = "images-"  # begins the folder of an evaluation on other images, in the run's directory


@dataclass(frozen=True)
class Subject:
    """What is evaluated: images, the truth of drawn ones by id, where results go, what is amiss.

    other: the images are not the run's held-out ones.
    """

    images: ImageFolder
    truth: dict[str, Any] | None
    target: Path
    left_out: list[str]
    other: bool = False

    def write(self, ids: Sequence[str]) -> None:
        """Of other images: where they lie, beside the results, as the run has it of its own."""
        if self.other:
            where = {"source": self.images.address, "ids": list(ids), "drawn": False}
            write_text(self.target / "heldout.json", json.dumps(where))


def find_subject(run_directory: Path, source: str | None, console: Console) -> Subject:
    """The run's held-out images, or those of a source, without truth."""
    if source is not None:
        images = ImageFolder.index(source)
        for path, reason in images.skipped.items():
            console.print(f"Left out: {printable(f'{path}: {reason}')}", soft_wrap=True)
        left_out = [f"{len(images.skipped)} files cannot be used."] if images.skipped else []
        name = re.sub(r"\W+", "-", Path(source).expanduser().resolve().name).strip("-")
        target = run_directory / f"{OTHER}{name or 'all'}"
        return Subject(images, None, target, left_out, other=True)
    heldout = read_heldout(run_directory)
    root = Path(heldout["source"])
    images = reopen_images(heldout["source"], heldout["ids"])
    if not heldout["drawn"]:
        return Subject(images, None, run_directory, [])
    truth_file = truth_of(root)
    if not truth_file.is_file():
        sentence = f"Facts are not scored, because {truth_file} is not there."
        return Subject(images, None, run_directory, [sentence])
    return Subject(images, read_truth(truth_file, heldout["ids"], "held-out"), run_directory, [])


def run_directory_of(evaluated: Path) -> Path:
    """The directory of the run in which this is a folder of other images; else itself."""
    path = evaluated.resolve()
    inside = path.name.startswith(OTHER) and not (path / "config.yaml").is_file()
    return path.parent if inside and (path.parent / "config.yaml").is_file() else evaluated
