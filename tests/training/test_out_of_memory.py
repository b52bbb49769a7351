"""Out of memory through the real command: explained, and the last checkpoint goes on."""

import pytest
import torch
from safetensors.torch import load_file

from rewards.length import Length
from vizer_rl import cli
from vizer_rl.algorithms.grpo import GRPO
from vizer_rl.training import out_of_memory

from ..conftest import REPO, TINY

pytestmark = pytest.mark.faults

CPU = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"
ERRORS = [
    RuntimeError(CPU),
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
]


def wrapped(cause):
    error = ValueError("a reward says what went wrong in it")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("error", [*ERRORS, *map(wrapped, ERRORS)], ids=repr)
def test_a_failed_allocation_is_noticed_also_inside_another_error(error):
    assert out_of_memory.is_out_of_memory(error)


def test_other_errors_are_none():
    assert not out_of_memory.is_out_of_memory(RuntimeError("sizes do not match"))
    assert not out_of_memory.is_out_of_memory(wrapped(ValueError("memory")))


def fail_in(monkeypatch, owner, name, call):
    """From the `call`-th call on, the method cannot allocate its memory."""
    original, calls = getattr(owner, name), []

    def method(self, *args, **kwargs):
        calls.append(name)
        if len(calls) >= call:
            raise RuntimeError(CPU)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, method)


def train(name, *more):
    file = str(REPO / "experiments" / "smolvlm.yaml")
    return cli.main(["train", file, *TINY, f"name={name}", "train.save_steps=1", *more])


@pytest.mark.slow
def test_a_reward_without_memory_leaves_a_checkpoint_that_goes_on(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    with monkeypatch.context() as patch:
        fail_in(patch, GRPO, "_calculate_rewards", 2)
        assert train("oom", "--overwrite") == 2
    message = capsys.readouterr().err
    assert "out of memory in step 2" in message
    assert "Traceback" not in message
    for part in ("weights", "Adam", "keys and values", "peak", "per_device_train_batch_size="):
        assert part in message, message
    checkpoint = workplace / "runs" / "oom" / "checkpoint-1"
    assert "runs/oom/checkpoint-1 is intact" in message
    assert "--resume" in message
    assert load_file(checkpoint / "adapter_model.safetensors")
    assert (checkpoint / "trainer_state.json").is_file()
    assert train("oom", "--resume") in (0, None)
    assert (workplace / "runs" / "oom" / "checkpoint-2").is_dir()


@pytest.mark.slow
def test_the_phase_is_named_and_without_a_checkpoint_it_says_so(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    with monkeypatch.context() as patch:
        fail_in(patch, GRPO, "loss", 1)
        assert train("oom-first", "--overwrite") == 2
    message = capsys.readouterr().err
    assert "out of memory in step 1, phase reference and policy passes" in message
    assert "no checkpoint yet" in message


@pytest.mark.slow
def test_a_reward_reports_rewards_as_its_phase(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    with monkeypatch.context() as patch:
        fail_in(patch, Length, "__call__", 2)
        code = train("oom-reward", "--overwrite")
    message = capsys.readouterr().err
    assert code == 2
    assert "phase scoring" in message, message
