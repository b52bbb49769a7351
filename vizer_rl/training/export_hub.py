"""Upload of an export to the Hugging Face hub: resumable, private at first, no token in any file.

huggingface_hub takes the token from HF_TOKEN or `hf auth login` by itself; here it is only asked
whether there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # type: ignore[attr-defined]
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from ..errors import UserError
from ..files import CHECKSUMS
from .hub_files import size_text

Report = Callable[[str], object]  # what prints a sentence


def check_repository(repository: str | None) -> None:
    """UserError where a repository's name is missing or malformed."""
    form = "allowed: OWNER/NAME of letters, digits, '-', '_' and '.', at most 96 of them"
    if repository is None:
        raise UserError(f"--to hub needs --repo, the name on the hub; {form}")
    try:
        validate_repo_id(repository)
        right = repository.count("/") == 1
    except HFValidationError:
        right = False
    if not right:
        raise UserError(f"--repo {repository!r} is no name on the hub; {form}")


def check_access() -> None:
    """UserError where nothing can be uploaded: HF_HUB_OFFLINE is set, or there is no token."""
    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set: unset it to upload, or see --dry-run")
    if get_token() is None:
        raise UserError(
            "the hub takes uploads with a token alone: log in with `hf auth login` (a token that "
            "may write), or set HF_TOKEN; --dry-run needs none"
        )


def upload(folder: Path, repository: str, dry_run: bool, report: Report) -> None:
    """Upload a folder's files; called again after it broke off, what is there already is not sent.

    A repository that does not exist yet is created, private. dry_run: say what would be done.
    """
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != CHECKSUMS]
    report(f"{'Would upload' if dry_run else 'Uploading'} to {constants.ENDPOINT}/{repository}:")
    for path in files:
        report(f"  {path.relative_to(folder)}  {size_text(path.stat().st_size)}")
    if dry_run:
        report("Nothing was sent. The same call without --dry-run sends it, private at first.")
        return
    api = HfApi(endpoint=constants.ENDPOINT)
    with _explained(repository):
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Export of a vizer_rl run",
            ignore_patterns=[CHECKSUMS],
        )
    report(f"Uploaded: {constants.ENDPOINT}/{repository}")


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """What the hub refuses, or a network that breaks off, as one sentence that says what to do."""
    again = "call it again, it goes on where it stopped"
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UserError("HF_HUB_OFFLINE is set: unset it to upload, or see --dry-run") from error
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else None
        if code in (401, 403):
            raise UserError(
                f"the hub refuses '{repository}' ({code}): the token may not write there; log in "
                "with `hf auth login` and a token that may, or give another --repo"
            ) from error
        raise UserError(
            f"the hub did not take '{repository}' ({' '.join(str(error).split()):.200}): {again}"
        ) from error
    except (HTTPError, OSError) as error:
        raise UserError(
            f"the upload to '{repository}' broke off ({' '.join(str(error).split()):.200}): {again}"
        ) from error
