"""Errors that a user can mend, and the sentences of nearest matches: imported by everybody."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """A mistake of the user's: the command line prints the message alone and exits with 2."""


class ConfigError(UserError):
    """What is wrong with a run file and its overrides, one line per error."""


def not_found(path: Path) -> str:
    """'PATH' not found, with the nearest name of what is there."""
    missing = path.expanduser()
    while not missing.parent.is_dir():
        missing = missing.parent
    names = [p.name for p in missing.parent.iterdir()] if not missing.exists() else []
    close = difflib.get_close_matches(missing.name, names, 1, 0.5)
    return f"'{path}' not found" + (f"; nearest: {missing.parent / close[0]}" if close else "")


def near(bad: object, names: Iterable[str]) -> str:
    """What is allowed, and the nearest of it."""
    close = difflib.get_close_matches(str(bad), names := list(names), 1, 0.5)
    allowed = ", ".join(names) if len(names) < 30 else f"one of {len(names)} names"
    return f"allowed: {allowed or 'nothing'}" + (f"; nearest: {close[0]}" if close else "")


class ImageError(ValueError):
    """An image or a whole source that cannot be used; the message is one sentence."""
