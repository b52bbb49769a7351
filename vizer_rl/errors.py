"""Errors that a user can correct, and their nearest-match sentences: imported by all, imports none.

`user_message` tells such an error from a bug, which is raised with its traceback; `printable` and
`masked` make what goes to a terminal harmless and keep passwords out of it.
"""

from __future__ import annotations

import difflib
import errno
import re
import sys
from collections.abc import Iterable
from pathlib import Path

HUB_UNREACHABLE = re.compile(
    r"couldn't connect to|failed to download|offline mode|outgoing traffic has been disabled"
    r"|cannot find the requested files in the local cache",
    re.IGNORECASE,
)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
DISK_FULL = re.compile(
    r"No space left|Read-only file system|file write failed|os error (28|30|122)"
)
UNPRINTABLE = re.compile(  # control characters, line separators, text direction, lone surrogates
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+(?=@)")  # user:password of a URL
WRITERS = ("SafetensorError", "RuntimeError")  # of safetensors and of torch.save


class UserError(ValueError):
    """A mistake of the user's: the command line prints the message alone and exits with 2."""


class ConfigError(UserError):
    """What is wrong with a run file and its overrides, one line per error."""


class ImageError(ValueError):
    """An image or a whole source that cannot be used; the message is one sentence."""


class Interrupted(KeyboardInterrupt):
    """A training was stopped by a signal; `code` is the exit code: 130, or 143 for SIGTERM."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def printable(text: str) -> str:
    """Text in which characters that a terminal acts on, or cannot show, stand as JSON's \\uXXXX."""
    return UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def masked(text: str) -> str:
    """Text with `***` in place of the user and password of each URL."""
    return CREDENTIALS.sub("***", text)


def nearest_match(value: object, names: Iterable[str]) -> str | None:
    """The name most similar to the value, None where none is similar."""
    matches = difflib.get_close_matches(str(value), list(names), 1, 0.5)
    return matches[0] if matches else None


def nearest_allowed(value: object, names: Iterable[str]) -> str:
    """`allowed: NAMES; nearest: NAME`, the end of a sentence about a value that is not allowed."""
    nearest = nearest_match(value, names := list(names))
    allowed = ", ".join(names) if len(names) < 30 else f"one of {len(names)} names"
    return f"allowed: {allowed or 'nothing'}" + (f"; nearest: {nearest}" if nearest else "")


def path_not_found(path: str | Path) -> str:
    """`'PATH' not found; nearest: PATH`, by the names in the deepest folder that exists."""
    missing = Path(path).expanduser()
    while not missing.parent.is_dir():
        missing = missing.parent
    names = [p.name for p in missing.parent.iterdir()] if not missing.exists() else []
    nearest = nearest_match(missing.name, names)
    return f"'{path}' not found" + (f"; nearest: {missing.parent / nearest}" if nearest else "")


def user_message(error: BaseException) -> str | None:
    """The message for an error that the user can correct; None for a bug."""
    if isinstance(error, UserError | ImageError):
        return str(error)
    # A class of a module that was never imported cannot have been raised.
    hub = sys.modules.get("huggingface_hub.errors")
    offline = (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) if hub else ()
    cause: BaseException | None = error
    while cause is not None:
        if fault := _machine_fault(cause):
            return fault
        matches = isinstance(cause, OSError | RuntimeError) and HUB_UNREACHABLE.search(str(cause))
        if matches or isinstance(cause, offline):
            return (
                "the Hugging Face hub cannot be reached. Two ways on: MODEL=/local/path (and "
                "scorer.train=local-dir:/path) for files that are here, PROFILE=scenes for the "
                f"models that ship with the package. It said: {' '.join(str(error).split())}"
            )
        cause = cause.__cause__
    return None


def _machine_fault(error: BaseException) -> str:
    """The sentence on a disk that takes no more or a worker that was killed, "" for all else."""
    disk = DISK_FULL.search(str(error))
    if getattr(error, "errno", None) in DISK_ERRORS or (disk and type(error).__name__ in WRITERS):
        return f"the disk takes no more ({' '.join(str(error).split())})"
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return (
            f"a worker that reads images was killed ({' '.join(str(error).split())}): give it more "
            "memory, or read in the main process (train.dataloader_num_workers=0)"
        )
    return ""
