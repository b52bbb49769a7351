"""Interrupts of a training: on Ctrl-C or SIGTERM the micro-step ends, then a checkpoint is written.

The checkpoint is of the last whole step: what the unfinished one has drawn and summed up is put
back, so that the run that goes on is the run that was never stopped.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from ..errors import Interrupted
from .launch import is_launched

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PASSED_ON = 2.0  # seconds in which a launcher passes on what the terminal has sent to all


class Interrupts(TrainerCallback):
    """Watches for signals between micro-steps; a second one leaves at once."""

    def __init__(self, trainer: Any, report: Callable[[str], object]) -> None:
        """report: takes a sentence."""
        self.trainer, self.report, self.signal = trainer, report, 0
        self._since = 0.0
        self._state: dict[str, Any] = {}
        self._random_state: tuple[Any, ...] = ()
        self._epoch_begins = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Inside, a signal ends the training by Interrupted, once a checkpoint is written."""
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        except Interrupted:
            _set_random_state(self._random_state)
            self.trainer.save_interrupted(self._state)
            raise
        except Exception:
            if self.trainer.accelerator.num_processes > 1:
                before[signal.SIGTERM] = signal.SIG_IGN  # a launcher's, before our last words
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal and is_launched() and time.monotonic() - self._since < PASSED_ON:
            return
        if self.signal:
            raise KeyboardInterrupt
        self.signal, self._since = number, time.monotonic()
        self.report("stopping after this micro-step; a second time: at once")

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._random_state, self._epoch_begins = _random_state(), True  # its shuffle draws

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self._epoch_begins:
            self._random_state = _random_state()
        self._epoch_begins = False
        self._state = self.trainer.rollout_state()
        self._leave()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._leave()

    def _leave(self) -> None:
        """Raise Interrupted where a device has been signalled: all leave at the same place."""
        number, accelerator = self.signal, self.trainer.accelerator
        if accelerator.num_processes > 1:
            signalled = torch.tensor([number], device=accelerator.device)
            number = int(accelerator.gather(signalled).max())
        if number:
            raise Interrupted(128 + number)


def _random_state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _set_random_state(state: tuple[Any, ...]) -> None:
    python, numpy, cpu, cuda = state
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
