"""Forms of captions on disk: sidecars, jsonl, csv, parquet, ImageFolder's metadata.jsonl.

All but jsonl are written from a journal that lies hidden beside them; each file is whole or absent.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ...errors import UserError
from ...files import naming, write_atomic, write_jsonl, write_text
from .journal import Row
from .pictures import Picture, Pictures

FORMS = ("sidecar", "jsonl", "csv", "parquet", "metadata.jsonl")
IN_FOLDER = ("sidecar", "metadata.jsonl")  # they stand beside images, and hold a caption of each
PART = re.compile(r"\.(.+)\.(\d+)\.part")  # what `write_atomic` leaves when it is killed
COLUMNS = ("image", "caption", "base", "score", "base_score", "doubtful", "unsure", "ended")


@dataclass(frozen=True)
class Output:
    """Where captions go: a file, or the folder of the sidecars."""

    form: str
    path: Path

    @property
    def folder(self) -> Path:
        """The folder that all is written below."""
        return self.path if self.form == "sidecar" else self.path.parent

    def journal(self, key: str) -> Path:
        """The file that captions are added to, batch by batch; key: of policy and settings.

        Sidecars have one for each key, so that those of another are files like any others.
        """
        if self.form == "jsonl":
            return self.path
        name = f"captions-{key}.jsonl" if self.form == "sidecar" else f"{self.path.name}.journal"
        return self.folder / f".{name}"

    @property
    def left_out(self) -> Path:
        """The list of images that were left out, and why."""
        stem = "captions" if self.form == "sidecar" else self.path.stem
        return self.folder / f"{stem}.left_out.jsonl"

    def sidecar(self, name: str) -> Path:
        """The text file of an image's caption."""
        return (self.path / name).with_suffix(".txt")


def make_output(form: str, to: Path | None, pictures: Pictures, sides: int = 1) -> Output:
    """Where captions of these images go; UserError where the form cannot hold them.

    to: a file or folder; None: beside the images (IN_FOLDER), else captions.FORM here. sides:
    captions of each image, 2 with the base's.
    """
    if form in IN_FOLDER:
        if sides > 1:
            raise UserError(
                f"--out {form} holds one caption of an image: leave out --base, or take jsonl, csv "
                "or parquet"
            )
        inside = next((p.name for p in pictures.rows if p.file is None), None)
        if inside is not None:
            raise UserError(
                f"--out {form} needs images that are files, and '{inside}' lies in an archive: "
                "take jsonl, csv or parquet"
            )
    to = to.expanduser() if to else None
    if form == "sidecar":
        folder = to or pictures.root
        if folder.is_file():
            raise UserError(f"--to '{folder}' is a file; sidecars need a folder")
        return Output(form, folder)
    name = form if form in IN_FOLDER else f"captions.{form}"
    path = to or (pictures.root / name if form in IN_FOLDER else Path(name))
    path = path / name if path.is_dir() else path
    suffix = f".{form.rpartition('.')[2]}"
    if path.suffix != suffix:
        raise UserError(f"--to '{path}' does not end with {suffix}, which --out {form} writes")
    if form == "metadata.jsonl":
        _check_below(path, pictures)
    return Output(form, path)


def _check_below(path: Path, pictures: Pictures) -> None:
    """ImageFolder finds files below the folder of its metadata alone."""
    folder = Path(os.path.abspath(path.parent))
    if path.name != "metadata.jsonl":
        raise UserError(f"--to '{path}': ImageFolder reads metadata.jsonl, and no other name")
    if not pictures.root.is_relative_to(folder):
        raise UserError(
            f"metadata.jsonl must lie in '{pictures.root}' or above it, not in '{folder}': "
            "ImageFolder finds no image elsewhere"
        )


def check_writable(output: Output, pictures: Iterable[Picture]) -> None:
    """A Fault, before anything is loaded, where a folder that is written to takes no file.

    UserError where it lies below a file.
    """
    folders = {output.folder}
    if output.form == "sidecar":
        folders |= {output.sidecar(picture.name).parent for picture in pictures}
    for folder in sorted(folders):
        present = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not present.is_dir():
            raise UserError(f"'{folder}' cannot be written to: '{present}' is no folder")
        probe = present / f".vizer_rl.{os.getpid()}.part"
        with naming(folder):
            probe.open("wb").close()
            probe.unlink()


def check_owned(output: Output, overwrite: bool) -> None:
    """UserError where a file is there that this command has not written, unless overwrite."""
    if output.form in ("sidecar", "jsonl") or overwrite or not output.path.exists():
        return
    if not output.journal("").exists():
        raise UserError(
            f"'{output.path}' exists and was not written by this command: give another --to, or "
            "--overwrite to replace it"
        )


def clear_parts(output: Output, pictures: Iterable[Picture], key: str) -> None:
    """Delete what a killed process has left of files that it had begun."""
    whole = (output.path, output.journal(key), output.left_out)
    folders, own = {output.folder}, {path.name for path in whole}
    if output.form == "sidecar":
        sidecars = [output.sidecar(picture.name) for picture in pictures]
        folders |= {path.parent for path in sidecars}
        own |= {path.name for path in sidecars}
    for folder in folders:
        for path in folder.glob(".*.part"):
            match = PART.fullmatch(path.name)
            if match and match[1] in own and not psutil.pid_exists(int(match[2])):
                path.unlink(missing_ok=True)


def sidecar_text(caption: str) -> str:
    """A caption as a text file has it: on one line, without a line feed behind it."""
    return " ".join(caption.split())


def has_sidecar(output: Output, row: Row) -> bool:
    """Whether the sidecar of a row is there and holds its caption."""
    try:
        return output.sidecar(row["image"]).read_text("utf-8") == sidecar_text(row["caption"])
    except (OSError, UnicodeError):
        return False


def write_sidecars(output: Output, rows: Iterable[Row]) -> None:
    """Write the sidecars of rows, each whole or not at all."""
    for row in rows:
        write_text(output.sidecar(row["image"]), sidecar_text(row["caption"]))


def write_whole(output: Output, root: Path, rows: Sequence[Row]) -> None:
    """Write the file of all rows at one stroke; root: of the images' names."""
    if output.form == "csv":
        write_atomic(output.path, lambda part: _write_csv(part, rows))
    elif output.form == "parquet":
        write_atomic(output.path, lambda part: _write_parquet(part, rows))
    elif output.form == "metadata.jsonl":
        below = root.relative_to(Path(os.path.abspath(output.path.parent)))
        write_jsonl(
            output.path,
            (
                {"file_name": (below / row["image"]).as_posix(), "text": row["caption"]}
                for row in rows
            ),
        )


def _columns(rows: Sequence[Row]) -> list[str]:
    """The columns that rows have, in order."""
    return [name for name in COLUMNS if any(name in row for row in rows)]


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    columns = _columns(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)


def _cell(value: Any) -> object:
    """A value as a cell of text: words that are doubtful as "word > what fits better"."""
    if isinstance(value, list):
        return "; ".join(
            f"{word['word']} > {word['instead']}"
            if "instead" in word
            else f"{word['word']} {word['certainty']:.2f}"
            for word in value
        )
    return "" if value is None else value


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow as pa  # comes with datasets; slow to import
    from pyarrow import parquet

    span = [("start", pa.int32()), ("end", pa.int32()), ("word", pa.string())]
    doubtful = pa.list_(pa.struct([*span, ("instead", pa.string())]))
    unsure = pa.list_(pa.struct([*span, ("certainty", pa.float32())]))
    types = {"doubtful": doubtful, "unsure": unsure, "ended": pa.bool_()}
    types |= dict.fromkeys(("score", "base_score"), pa.float32())
    schema = pa.schema([(name, types.get(name, pa.string())) for name in _columns(rows)])
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    parquet.write_table(table, path)
