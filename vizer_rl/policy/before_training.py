"""The model before training, while a context lasts: adapter off, eval mode, no gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .lora import adapter_off


class BeforeTraining:
    """`with frozen():` the model is as before training; nested contexts are the outer one's.

    Afterwards every module's mode and adapter are what they were.
    """

    def __init__(self, model: Any) -> None:
        self.model, self._entered = model, False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if self._entered:
            yield
            return
        training = [module for module in self.model.modules() if module.training]
        self._entered = True
        try:
            _set_mode(training, False)
            with torch.no_grad(), adapter_off(self.model):
                yield
        finally:
            _set_mode(training, True)
            self._entered = False


def _set_mode(modules: list[Any], training: bool) -> None:
    for module in modules:  # a plain flag: what `train` does to each, without its search of names
        object.__setattr__(module, "training", training)
