"""Export of a run: adapter or merged weights with a model card, for plain transformers and PEFT.

What was written is loaded again, as anybody would load it, and held against the run: an export that
does not answer as the run does is not kept. DIR comes into being whole, by one rename.
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from typing_extensions import TypedDict  # typing's is no type for pydantic before Python 3.12

from ..config.run_dir import read_heldout
from ..config.schema import Run
from ..data.sources import ImageFolder, reopen_images
from ..errors import UserError
from ..evaluation.run_policy import RunPolicy, decoded, trained_run
from ..evaluation.tables import PlainConsole
from ..files import read_json, replaced, whole, write_text
from ..policy.lora import WEIGHTS
from . import export_hub
from .export_base import base_of, base_settings, check_base, check_not_quantised
from .export_card import card
from .export_parity import PARITY_IMAGES, check_parity, plain_outputs, run_outputs
from .export_weights import write_adapter, write_merged, write_processor

EXPORT_FILE = "export.json"  # marks a folder as an export: nothing else is ever overwritten


class Record(TypedDict):
    """export.json: which run's weights a folder holds, and how parity was."""

    run: str
    kind: str
    adapter_sha256: str
    parity: dict[str, Any]


@dataclass(frozen=True)
class Target:
    """Where an export goes: its folder, and the repository on the hub if it goes there too."""

    out: Path
    overwrite: bool = False
    repository: str | None = None
    dry_run: bool = False


def export(run_directory: Path, to: str, target: Target, source: str | None = None) -> None:
    """Write a run's adapter or merged weights into a folder, check them, bring them to the hub.

    to: "adapter", "merged" or "hub", which uploads what the folder holds of this run, an adapter
    where it holds nothing yet; source: other images for the parity check than the held-out ones.
    UserError where the run is not finished or not whole, the folder is in use, or parity fails.
    """
    console = PlainConsole()
    run = finished_run(run_directory)
    if to == "hub":
        export_hub.check_repository(target.repository)
        if not target.dry_run:
            export_hub.check_access()
    elif target.repository or target.dry_run:
        raise UserError("--repo and --dry-run are of --to hub alone")
    record = _record_of(target.out)
    adapter = _sha256(whole(run_directory / "adapter") / WEIGHTS)
    kept = record if to == "hub" and not target.overwrite else None
    kind = kept["kind"] if kept else "adapter" if to == "hub" else to
    if to == "hub" and kind == "adapter":
        base_of(run).check_public(run_directory)
    if kept:
        _check_same(kept, run, adapter, target.out)
        console.print(f"'{target.out}' holds this run already, as {kind}")
    else:
        _check_free(target, record)
        record = Record(run=run.name, kind=kind, adapter_sha256=adapter, parity={})
        _write(run, run_directory, record, target.out, _images(run_directory, source), console)
    if to == "hub":
        export_hub.upload(target.out, str(target.repository), target.dry_run, console.print)


def finished_run(run_directory: Path) -> Run:
    """The run of a directory that came to its end: it has an adapter and an evaluation."""
    run = trained_run(run_directory)
    if not (run_directory / "eval.json").is_file():
        raise UserError(
            f"run '{run_directory}' has not come to its end: it has no eval.json; go on with "
            f"`vizer-rl train {run_directory / 'config.yaml'} --resume`, or judge what it has with "
            f"`vizer-rl evaluate --run {run_directory}`"
        )
    return run


def _write(
    run: Run,
    run_directory: Path,
    record: Record,
    out: Path,
    images: ImageFolder,
    console: Console,
) -> None:
    """Fill a folder beside `out`, check it, and give it that name."""
    kind = record["kind"]
    if kind == "merged":
        check_not_quantised(run)
    policy = RunPolicy(run, run_directory)
    compared = check_base(run, run_directory, policy)
    _, pictures = next(decoded(images, "captioning", console))
    before, dtype, base = run_outputs(policy, pictures), policy.model.dtype, base_of(run)
    source: str | None = None
    settings: dict[str, Any] = {}  # of merged weights they are in the config
    with _cleaned(out), replaced(out) as part:
        write_processor(policy, part)
        if kind == "merged":
            write_merged(policy, part)
        else:
            write_adapter(base, whole(run_directory / "adapter"), part)
            source, settings = base.load_path(part), base_settings(run, policy.processor, dtype)
        del policy
        free_memory()
        after = plain_outputs(part, source, dtype, before, settings)
        free_memory()
        parity = check_parity(before, after, dtype)
        record["parity"] = parity.as_json()
        text = card(run, run_directory, kind, base, parity, compared, settings)
        write_text(part / "README.md", text)
        write_text(part / EXPORT_FILE, json.dumps(record, indent=1))
    console.print(f"Parity. {parity.sentence()}\nWritten: {out}", soft_wrap=True)


def free_memory() -> None:
    """Give back what a model held that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _images(run_directory: Path, source: str | None) -> ImageFolder:
    """The images of the parity check: the first of a source, else of the held-out ones."""
    if source is not None:
        images = ImageFolder.index(source)
        return replace(images, ids=images.ids[:PARITY_IMAGES], skipped={})
    heldout = read_heldout(run_directory)
    return reopen_images(heldout["source"], heldout["ids"][:PARITY_IMAGES])


def _record_of(out: Path) -> Record | None:
    """What a folder says of itself, if it is an export."""
    path = out / EXPORT_FILE
    record: Record | None = read_json(path, Record) if path.is_file() else None
    return record


def _check_free(target: Target, record: Record | None) -> None:
    """UserError where the folder is in use and may not be replaced."""
    out = target.out
    if out.name in ("", ".."):
        raise UserError(f"--out '{out}': give the folder by its name")
    if out.is_dir() and not any(out.iterdir()):
        return
    if record and not target.overwrite:
        raise UserError(
            f"'{out}' holds an export of run {record['run']!r}: --overwrite replaces it, or give "
            "another --out"
        )
    if (out.exists() or out.is_symlink()) and not record:
        what = "is not empty and no export" if out.is_dir() else "is no folder"
        raise UserError(f"'{out}' {what}, so it stays as it is: give another --out")
    above = next(p for p in out.absolute().parents if p.exists())
    if not above.is_dir():
        raise UserError(f"--out '{out}': '{above}' is no folder")


def _check_same(record: Record, run: Run, adapter: str, out: Path) -> None:
    """UserError where a folder holds another run than the one that is to be uploaded."""
    if record["adapter_sha256"] != adapter:
        now = "as it was before" if record["run"] == run.name else f"not of {run.name!r}"
        raise UserError(
            f"'{out}' holds an export of run {record['run']!r}, {now}: --overwrite exports anew, "
            "or give another --out"
        )


@contextmanager
def _cleaned(out: Path) -> Iterator[None]:
    """What was written beside `out` goes where it does not come to its end."""
    try:
        yield
    except BaseException:
        if out.exists() or not out.with_name(f".{out.name}.old").exists():
            shutil.rmtree(out.with_name(f".{out.name}.part"), ignore_errors=True)
        raise


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from error
