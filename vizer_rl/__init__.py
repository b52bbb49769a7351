"""Captioners that learn without labels. The Python API (docs/api.md), imported at its first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import audit, score, train
    from .config.schema import Run
    from .errors import UserError
    from .evaluation.run_captions import Captioner

__all__ = ["Captioner", "Run", "UserError", "audit", "score", "train"]

_HOMES = {
    "Captioner": ".evaluation.run_captions",
    "Run": ".config.schema",
    "UserError": ".errors",
    "score": ".api",
    "train": ".api",
}


def __getattr__(name: str) -> Any:
    """A name of the API from the module where it lives: `import vizer_rl` alone loads nothing."""
    if name == "audit":  # the room of this name, which can be called
        return import_module(".audit", __name__)
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
