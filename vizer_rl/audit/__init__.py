"""The audit of a run's rewards before training; `audit` runs it, `verdict` judges its numbers.

`vizer_rl.audit(config)` is a function of the Python API, too. The import system puts this room
under the same name, so the room can be called and does what `vizer_rl.api.audit` does.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _CallableRoom(ModuleType):
    """A module that is a function as well; its name is looked up late, for it lies above."""

    def __call__(self, config: Any, settings: Any = None) -> Any:
        return import_module("vizer_rl.api").audit(config, settings)


sys.modules[__name__].__class__ = _CallableRoom
