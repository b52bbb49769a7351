"""Errors that a user can correct, and their nearest-match sentences: imported by all, imports none.

`user_message` tells such an error from a bug, which is raised with its traceback.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable
from pathlib import Path

HUB_UNREACHABLE = re.compile(
    r"couldn't connect to|failed to download|offline mode|outgoing traffic has been disabled"
    r"|cannot find the requested files in the local cache",
    re.IGNORECASE,
)


class UserError(ValueError):
    """A mistake of the user's: the command line prints the message alone and exits with 2."""


class ConfigError(UserError):
    """What is wrong with a run file and its overrides, one line per error."""


class ImageError(ValueError):
    """An image or a whole source that cannot be used; the message is one sentence."""


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
        matches = isinstance(cause, OSError | RuntimeError) and HUB_UNREACHABLE.search(str(cause))
        if matches or isinstance(cause, offline):
            return (
                "the Hugging Face hub cannot be reached. Two ways on: MODEL=/local/path (and "
                "scorer.train=local-dir:/path) for files that are here, PROFILE=scenes for the "
                f"models that ship with the package. It said: {' '.join(str(error).split())}"
            )
        cause = cause.__cause__
    return None
