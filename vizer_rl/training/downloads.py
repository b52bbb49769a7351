"""Downloads of a run: sizes first, the disk checked, a bar for each file, parts gone on with.

huggingface_hub deletes a file that breaks off; here its part stays in the cache.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HTTPError  # type: ignore[attr-defined]
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock, build_hf_headers

from ..config.schema import Run
from ..errors import UserError
from .hub_files import SPACY, FileSet, HubFile, size_text, survey

Report = Callable[[str], object]  # what prints a sentence


def fetch(run: Run, report: Report) -> None:
    """Fetch what a run needs and is not here, sizes first; UserError where that cannot be done."""
    sets = [s for s in survey(run) if s.state != "here" and s.source != SPACY]
    offline = [f"{s.source} ({s.title}, {s.state})" for s in sets if s.files is None]
    if offline:
        raise UserError(
            f"the Hugging Face hub cannot be reached, and not here: {', '.join(offline)}. Ways on: "
            "start where there is a network (without HF_HUB_OFFLINE), copy that machine's HF_HOME "
            "here, name folders (policy.model=/path, scorer.train=local-dir:/path), or "
            "PROFILE=scenes for the models that ship with the package"
        )
    if not sets:
        return
    cache = Path(constants.HF_HUB_CACHE)
    report(f"to download: {size_text(sum(s.missing for s in sets))} into {cache}")
    for s in sets:
        report(f"  {s.title}: {s.source}, {size_text(s.missing)} of {size_text(s.size)}")
    check_disk(sum(s.missing for s in sets), cache)
    for s in sets:
        for file in s.files or ():
            with _explained(s, file):
                _download(s, file, report)


def check_disk(needed: int, cache: Path) -> None:
    """UserError where the file system of the cache has less room than `needed` bytes."""
    folder = next(p for p in (cache, *cache.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the downloads need {size_text(needed)}, but {folder} has {size_text(free)} free: "
            "make room there, or set HF_HOME to a folder on a larger disk"
        )


def _download(files: FileSet, file: HubFile, report: Report) -> None:
    """Bring one file into the cache: large ones by parts, then the cache's own links."""
    if file.sha256 and file.stored < file.size <= constants.MAX_HTTP_DOWNLOAD_SIZE:
        blob = file.part.with_suffix("")
        blob.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(f"{file.part}.lock"):  # of several devices one fetches
            if not blob.exists():
                _download_part(files, file, report)
                file.part.replace(blob)
    hf_hub_download(
        files.source, file.name, cache_dir=constants.HF_HUB_CACHE, endpoint=constants.ENDPOINT
    )


def _download_part(files: FileSet, file: HubFile, report: Report) -> None:
    url = hf_hub_url(files.source, file.name, revision=files.revision, endpoint=constants.ENDPOINT)
    with file.part.open("ab") as stream:
        start = stream.tell()
        resumed = f", from {size_text(start)} on" if start else ""
        report(f"downloading {files.source} {file.name}, {size_text(file.size)}{resumed}")
        http_get(
            url,
            stream,
            resume_size=start,
            headers=build_hf_headers(),
            expected_size=file.size,
            displayed_filename=file.name,
        )
    with file.part.open("rb") as stream:
        right = not start or hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
    if not right:
        file.part.unlink()
        raise UserError(f"{files.source} {file.name} came broken and was deleted: start again")


@contextmanager
def _explained(files: FileSet, file: HubFile) -> Iterator[None]:
    """A download that fails becomes one sentence that says what to do."""
    try:
        yield
    except GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{files.source}"
        raise UserError(
            f"'{files.source}' wants its licence accepted: do so on {page}, then `hf auth login`"
        ) from error
    except (HTTPError, OSError) as error:
        raise UserError(
            f"the download of {files.source} {file.name} broke off ({' '.join(str(error).split())})"
            ": start again, it goes on where it stopped"
        ) from error
