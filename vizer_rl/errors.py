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
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
DISK_FAULT = re.compile(  # as safetensors, torch.save and a process of the data loader word it
    r"No space left|Read-only file system|Permission denied|file write failed"
    r"|os error (1|13|28|30|122)\b"
)
UNPRINTABLE = re.compile(  # control characters, line separators, text direction, lone surrogates
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+(?=@)")  # user:password of a URL
WRITERS = ("SafetensorError", "RuntimeError", "OSError")
DISTRIBUTED = ("DistBackendError", "DistNetworkError", "DistStoreError")  # of torch.distributed


class UserError(ValueError):
    """A mistake of the user's: the command line prints the message alone and exits with 2."""


class ConfigError(UserError):
    """What is wrong with a run file and its overrides, one line per error."""


class Fault(UserError):
    """What a machine, not its user, did wrong: a training adds where and how it can go on."""


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
        return _text(error)
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


def disk_fault(error: BaseException) -> str:
    """Why a disk takes no more, or not this, in the system's words; "" for all else."""
    number, text = getattr(error, "errno", None), " ".join(_text(error).split())
    worded = type(error).__name__ in WRITERS and DISK_FAULT.search(text)
    return text if number in (*FULL, *REFUSED) or worded else ""


def _text(error: BaseException) -> str:
    """An error's message; of one that a worker has passed on, without its traceback."""
    text = str(error)
    if text.startswith("Caught "):
        text = text.rstrip().splitlines()[-1].partition(": ")[2]
    return text


def _machine_fault(error: BaseException) -> str:
    """The sentence on a full disk or on a process that was killed beside us, "" for all else."""
    if reason := disk_fault(error):
        refused = getattr(error, "errno", None) in REFUSED
        return f"{'a file is refused' if refused else 'the disk takes no more'} ({reason})"
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return (
            f"a worker that reads images was killed ({' '.join(str(error).split())}): give it more "
            "memory, or read in the main process (train.dataloader_num_workers=0)"
        )
    gloo = isinstance(error, RuntimeError) and "gloo" in str(error)
    if gloo or type(error).__name__ in DISTRIBUTED:
        return "another process of this run has ended, or is out of reach: what it printed says why"
    return ""
