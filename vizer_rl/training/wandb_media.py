"""Media of a W&B run: pictures, tables and artifacts of files in its own directory, in a budget.

wandb first copies what an artifact holds into the user's data directory, where a run that is copied
elsewhere leaves it behind. Here an artifact reads files beside the run's own by relative paths.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import wandb
from PIL.Image import Image

from .wandb_run import wandb_folders

LONGEST_SIDE, QUALITY = 384, 80  # of a picture: pixels, JPEG's
RECURRING = ("files/media/images/**/*", "files/media/table/**/*", "artifacts/*.json")
SENT = ("*.wandb", "files/**/*", "artifacts/**/*")  # files of a W&B run: all that is sent
IN_PLACE = {"policy": "immutable", "skip_cache": True}  # wandb neither stages nor caches a copy
COLUMN_TYPES = 4096  # bytes that wandb adds to a table, with room to spare
ROW_OVERHEAD = 512  # bytes that it adds to a row with a picture


def sent_bytes(run_directory: Path, *patterns: str) -> int:
    """Bytes of these files of the W&B runs in a run directory."""
    runs = (run_directory / "wandb").glob("*run-*")
    paths = [path for run in runs for pattern in patterns for path in run.glob(pattern)]
    return sum(path.stat().st_size for path in paths if path.is_file())


class Budget:
    """Bytes that a run may send: curves and adapter are set aside, the rest takes what fits.

    Half of the rest is for what comes again and again. An eighth of that is open from the start and
    an eighth kept for the last step; in between it opens with the steps, so that a long run thins
    out evenly.
    """

    def __init__(self, limit: int, spent: int = 0, recurring: int = 0) -> None:
        """spent: by the run so far; recurring: of that by what comes again and again."""
        self.limit, self.spent, self.left_out = limit, spent, 0
        self._aside, self._recurring = 0, recurring

    @property
    def shared(self) -> int:
        """Bytes that nothing is set aside for."""
        return self.limit - self._aside

    def set_aside(self, size: int) -> None:
        """Keep so many bytes for what does not ask."""
        self._aside += size

    def takes(self, size: int, progress: float | None = None) -> bool:
        """Whether so many bytes may be sent; they are then spent.

        progress: share of the steps done, for what comes again; None for what comes a single time.
        """
        room: float = self.shared - self.spent
        if progress is not None:
            opened = 1.0 if progress >= 1 else (1 + 6 * progress) / 8
            room = min(room, self.shared / 2 * opened - self._recurring)
        if size > room:
            self.left_out += 1
            return False
        self.spent += size
        self._recurring += size if progress is not None else 0
        return True


class RunMedia:
    """What a W&B run sends beside its numbers; what the budget does not take is left out."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    @property
    def run(self) -> Any:
        """The W&B run that is open: another where wandb's own process died."""
        return wandb.run

    @property
    def folder(self) -> Path:
        """Where artifacts have their files, beside those of the run."""
        folder = Path(self.run.dir).parent / "artifacts"
        # offline the paths are read when the run is synced, from here or where it was copied to
        return Path(os.path.relpath(folder)) if self.run.offline else folder

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Log values of a step on the axis train/global_step."""
        self.run.log({**values, "train/global_step": step}, step=step)

    def log_gallery(
        self, key: str, step: int, progress: float, pictures: Sequence[bytes], captions: list[str]
    ) -> None:
        """Pictures (JPEG) side by side, each with its caption."""
        size = sum(map(len, pictures)) + 2 * len(json.dumps(captions))
        if not self.budget.takes(size, progress):
            return
        with tempfile.TemporaryDirectory() as folder:  # wandb puts copies among the run's files
            paths = [_write(Path(folder), picture) for picture in pictures]
            rows = zip(paths, captions, strict=True)
            self.log(step, {key: [wandb.Image(str(path), caption=text) for path, text in rows]})

    def log_table(
        self,
        key: str,
        step: int,
        progress: float,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        pictures: Sequence[bytes],
    ) -> None:
        """A new table, whose first column is each row's picture (JPEG)."""
        text = json.dumps([columns, *rows])  # stands in two files: the table's and the artifact's
        size = 2 * len(text) + ROW_OVERHEAD * len(rows) + COLUMN_TYPES
        if not self.budget.takes(size + sum(map(len, set(pictures))), progress):
            return
        paths = [_write(self.folder / "pictures", picture) for picture in pictures]
        name = key.replace("/", "-")
        artifact = wandb.Artifact(f"{name}-{self.run.id}", "captions", metadata={"step": step})
        for path in sorted(set(paths)):
            artifact.add_file(str(path), f"pictures/{path.name}", **IN_PLACE)
        images = [wandb.Image(str(path)) for path in paths]
        data = [[image, *row] for image, row in zip(images, rows, strict=True)]
        table = wandb.Table(columns=["image", *columns], data=data)
        with _staging():
            entry = artifact.add(table, name)
            file = self.folder / f"{name}-{step}.table.json"
            shutil.copyfile(entry.local_path, file)
            artifact.add_file(str(file), entry.path, overwrite=True, **IN_PLACE)
            self.run.log_artifact(artifact)
            self.log(step, {key: table})  # which refers to the artifact from now on

    def log_page(self, key: str, step: int, path: Path) -> None:
        """A self-contained HTML page, as it is."""
        if self.budget.takes(path.stat().st_size):
            self.log(step, {key: wandb.Html(str(path), inject=False)})

    def log_folder(self, name: str, kind: str, folder: Path, metadata: dict[str, Any]) -> None:
        """The files of a folder as an artifact, for which bytes are set aside."""
        copy = self.folder / name
        copy.mkdir(parents=True, exist_ok=True)
        artifact = wandb.Artifact(name, kind, metadata=metadata)
        for path in folder_files(folder):
            _link(path, copy / path.name)
            artifact.add_file(str(copy / path.name), path.name, **IN_PLACE)
        with _staging():
            self.run.log_artifact(artifact)


def folder_files(folder: Path) -> list[Path]:
    """The files in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.is_file())


def jpeg(image: Image) -> bytes:
    """An image as a small JPEG."""
    small, file = image.convert("RGB"), io.BytesIO()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    small.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _write(folder: Path, picture: bytes) -> Path:
    """A picture's file in a folder, the same for the same picture."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{blake2b(picture, digest_size=10).hexdigest()}.jpg"
    path.write_bytes(picture)
    return path


def _link(path: Path, copy: Path) -> None:
    """A second name for a file as it is now, which stays when the first is given to another.

    Without a second name, on file systems that have none, it is copied.
    """
    copy.unlink(missing_ok=True)
    try:
        os.link(path, copy)
    except OSError:
        shutil.copy(path, copy)


@contextmanager
def _staging() -> Iterator[None]:
    """wandb's data directory is a passing one: what it stages there is not needed any more."""
    with tempfile.TemporaryDirectory() as folder, wandb_folders(WANDB_DATA_DIR=Path(folder)):
        yield
