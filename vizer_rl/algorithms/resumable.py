"""Resumable trainer: checkpoints are whole, and hold all that decides the steps to come.

TRL and transformers save weights, optimizer, scheduler, random states and the position in the data.
Here is the rest: the rollout that is being learnt from, what algorithm, rewards and monitor have
summed up. A checkpoint is written aside, sealed and renamed (files.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from safetensors import SafetensorError
from trl import GRPOConfig

from ..errors import Fault, UserError, user_message
from ..files import checkpoints, load_tensors, seal
from .whole_parts import WholeParts

ASIDE = ".saving"  # in the run directory: the folder in which a checkpoint is written


class Resumable(WholeParts):
    """TRL's GRPOTrainer that goes on from a checkpoint as if it had never stopped.

    holders: name -> object of `state_dict` and `load_state_dict`, saved with every checkpoint.
    """

    holders: dict[str, Any]
    beta: float
    _aside = ""  # where a checkpoint is being written

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.holders = {}

    @property
    def sharded(self) -> bool:
        """Whether the weights may be spread over devices."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _get_output_dir(self, trial: Any) -> str:
        return self._aside or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with written_aside(self.accelerator, self.args, self.state.global_step) as folder:
            self._aside = str(folder.parent)
            super()._save_checkpoint(model, trial)
            self._aside = ""
            torch.save(self.state_dict(), folder / self._state_file)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / self._state_file
        if not path.is_file():
            raise UserError(
                f"{checkpoint} has no {path.name}: it is of another version of vizer_rl or of "
                "another number of devices"
            )
        try:
            self.load_state_dict(load_tensors(path))
        except KeyError as error:
            raise UserError(
                f"{path} lacks {error}: it is of another version of vizer_rl"
            ) from error
        for _ in range(int(self.state.epoch or 0)):  # each epoch before has drawn its order
            torch.randperm(self._sampler.num_samples, generator=self._sampler.generator)

    def save_interrupted(self, state: dict[str, Any]) -> None:
        """Checkpoint as of the last whole step, of which this was the `rollout_state`."""
        self.load_rollout_state(state)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.state.global_step and not folder.is_dir():
            self._save_checkpoint(self.model, None)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._sampler = super()._get_train_sampler(dataset)
        return self._sampler

    @property
    def _state_file(self) -> str:
        return f"state_{self.args.process_index}.pt"

    def state_dict(self) -> dict[str, Any]:
        """What decides the steps to come and TRL does not save, of plain values and tensors."""
        return self.rollout_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the trainer of a `state_dict`."""
        self.load_rollout_state(state)

    def rollout_state(self) -> dict[str, Any]:
        """Of that what a rollout changes: copied, but for batches, which stay as they are."""
        state = {name: holder.state_dict() for name, holder in self.holders.items()}
        pending = {name: list(values) for name, values in self._metrics["train"].items()}
        state |= {"step": self._step, "tokens": self.state.num_input_tokens_seen}
        state = deepcopy({**state, "beta": self.beta, "pending": pending})
        inside = self._step % (self.args.steps_per_generation * self.num_iterations)
        if inside and self._buffered_inputs is not None:
            state |= {"batches": self._buffered_inputs, "rollout": self.buffer_state()}
        return state

    def load_rollout_state(self, state: dict[str, Any]) -> None:
        """Go on as the trainer of a `rollout_state`."""
        for name, holder in self.holders.items():
            holder.load_state_dict(state[name])
        self._step = state["step"] if "batches" in state else 0  # micro-steps into a rollout
        self.beta = state["beta"]
        object.__setattr__(self.state, "num_input_tokens_seen", state["tokens"])
        self._metrics["train"].clear()
        for name, values in state["pending"].items():
            self._metrics["train"][name].extend(values)
        self._buffered_inputs = send_to_device(state.get("batches"), self.accelerator.device)
        if "rollout" in state:
            self.load_buffer_state(state["rollout"])

    def buffer_state(self) -> dict[str, Any]:
        """What the buffered batches of a rollout refer to."""
        return {}

    def load_buffer_state(self, state: dict[str, Any]) -> None:
        """Have again what the buffered batches refer to."""


@contextmanager
def written_aside(accelerator: Any, args: GRPOConfig, step: int) -> Iterator[Path]:
    """The folder to write the checkpoint of this step into; at the end it is sealed and renamed.

    The newest `save_total_limit` are kept. Raises Fault where the disk does not take it.
    """
    directory = Path(args.output_dir)
    folder = directory / ASIDE / f"checkpoint-{step}"
    try:
        if args.should_save:
            shutil.rmtree(directory / ASIDE, ignore_errors=True)
        accelerator.wait_for_everyone()
        yield folder
        accelerator.wait_for_everyone()
        if args.should_save:
            seal(folder, directory / folder.name)
            for old in checkpoints(directory)[args.save_total_limit :]:
                shutil.rmtree(old)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(directory / ASIDE, ignore_errors=True)  # room on a disk that is full
        reason = user_message(error) or " ".join(str(error).split())
        raise Fault(f"checkpoint {step} could not be written to {directory} ({reason})") from error
