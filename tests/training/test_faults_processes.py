"""Faults of processes: a rank, a worker or memory is gone: a sentence, and the run resumes."""

import contextlib
import json
import multiprocessing
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from rewards.length import Length
from vizer_rl import cli, files
from vizer_rl.algorithms.grpo import GRPO
from vizer_rl.policy.shared_prefix.collator import Collator
from vizer_rl.scoring import contract

from ..children import ended, in_child, start_pair
from ..conftest import FEW_REWARDS, REPO, TINY
from .test_kills import assert_same_run

pytestmark = pytest.mark.faults

FILE = str(REPO / "experiments" / "smolvlm.yaml")
SETTINGS = ["data.limit=24", "train.save_steps=1", "train.max_steps=3", "monitor.images=2"]
SETTINGS += ["data.heldout=4", *FEW_REWARDS]
TWO = ["train.per_device_train_batch_size=8"]
LIMIT = 30.0  # seconds in which a job ends where one of its processes was killed


@pytest.fixture(autouse=True)
def in_workplace(workplace, monkeypatch):
    monkeypatch.chdir(workplace)


def arguments(name, *more, flag="--overwrite"):
    return ["train", FILE, *TINY, *SETTINGS, f"name={name}", *more, flag]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def steps(directory):
    rows = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["step"] for row in rows]


def assert_goes_on_from(directory, number):
    """The newest checkpoint is that of this step, and whole."""
    newest = files.checkpoints(directory)[0]
    assert newest.name == f"checkpoint-{number}"
    assert files.damage(newest) == ""


def pair(name, *more, flag="--overwrite", prepare=lambda rank: None):
    """Two processes of a run, and where what each printed stands."""
    output = Path("printed") / name
    words = arguments(name, *TWO, *more, flag=flag)
    return start_pair(words, output, free_port(), prepare), output


def kill_at_step(number):
    """In the child: SIGKILL at the beginning of this step."""
    original, count = GRPO.training_step, []

    def training_step(self, *args):
        count.append(args)
        if len(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args)

    GRPO.training_step = training_step


@pytest.fixture(scope="module")
def lost(workplace):
    """A run of two processes of which one was killed in step 2, and what each printed.

    Without a launcher, so that the other one has to notice by itself.
    """
    with contextlib.chdir(workplace):
        children, output = pair("lost", prepare=lambda rank: rank and kill_at_step(2))
        assert ended(children[1]) == -signal.SIGKILL
        killed = time.monotonic()
        assert ended(children[0]) == 2
        seconds = time.monotonic() - killed
        print(f"\nthe other process ended {seconds:.1f} s after one was killed")
        assert seconds < LIMIT
        return workplace / "runs" / "lost", *((output / rank).read_text() for rank in "01")


def test_where_one_of_two_processes_is_killed_the_other_names_the_checkpoint(lost):
    directory, first, _ = lost
    assert "vizer_rl: another process of this run has ended" in first
    assert "runs/lost/checkpoint-1 is intact. Go on from it with:" in first
    assert "Traceback" not in first
    assert_goes_on_from(directory, 1)


def test_of_two_processes_one_prints_and_both_are_saved(lost):
    directory, first, second = lost
    assert "step 1/3" in first
    assert first.count("training starts after") == 1
    assert re.sub(r"\[rank1\]:.*\n", "", second) == ""  # torch's own notes
    for rank in "01":
        assert (directory / "checkpoint-1" / f"rng_state_{rank}.pth").is_file()
        assert (directory / "checkpoint-1" / f"state_{rank}.pt").is_file()


def test_another_number_of_processes_does_not_go_on(lost, capsys):
    assert cli.main([*arguments("lost", *TWO, flag="--resume")]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "checkpoint-1 is of a run of 2 processes, this would be one of 1: start" in printed
    assert steps(lost[0]) == [1]


@pytest.mark.slow
def test_two_processes_go_on_to_the_bit(lost, workplace):
    for name, flag in (("lost", "--resume"), ("pair", "--overwrite")):
        children, _ = pair(name, flag=flag)
        assert [ended(child) for child in children] == [0, 0]
    assert_same_run(lost[0], workplace / "runs" / "pair")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_launcher_ends_the_job_where_a_process_is_killed(rank, workplace):
    """By torchrun, which itself ends those that are left."""
    name = f"launched-{rank}"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--master_port", str(free_port()), "-m", "vizer_rl"]
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}

    def begin(*words):
        command = [*launch, *arguments(name, *TWO, *words)]
        return subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    directory = workplace / "runs" / name
    job = begin("train.max_steps=90")
    deadline = time.monotonic() + 200
    while not (directory / "checkpoint-2").is_dir():
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ranks = {p.environ().get("RANK"): p for p in psutil.Process(job.pid).children()}
    killed = time.monotonic()
    ranks[str(rank)].kill()
    printed, _ = job.communicate(timeout=2 * LIMIT)
    seconds = time.monotonic() - killed
    print(f"\ntorchrun ended {seconds:.1f} s after process {rank} was killed")
    assert seconds < LIMIT
    assert job.returncode
    assert "vizer_rl: another process of this run has ended" in printed
    assert "is intact. Go on from it with:" in printed
    newest = files.checkpoints(directory)[0]
    assert files.damage(newest) == ""
    last = int(newest.name[11:]) + 1
    job = subprocess.run(
        [*launch, *arguments(name, *TWO, f"train.max_steps={last}", flag="--resume")],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert job.returncode == 0, job.stderr
    assert steps(directory) == list(range(1, last + 1))


@pytest.fixture(scope="module")
def alone(workplace):
    """A run of one process that was never stopped."""
    with contextlib.chdir(workplace):
        assert in_child(arguments("alone")) == 0
    return workplace / "runs" / "alone"


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run_which_goes_on_without(alone, workplace, capfd):
    def prepare():
        original, count = Collator.__call__, []

        def read(self, features):
            count.append(features)
            if len(count) == 4 and multiprocessing.parent_process() is not None:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, features)

        Collator.__call__ = read

    assert in_child(arguments("worker", "train.dataloader_num_workers=1"), prepare) == 2
    printed = " ".join(capfd.readouterr().err.split())
    directory = workplace / "runs" / "worker"
    newest = files.checkpoints(directory)[0]
    assert "vizer_rl: a worker that reads images was killed" in printed
    assert f"{newest.name} is intact. Go on from it with:" in printed
    assert "train.dataloader_num_workers=0" in printed
    assert "Traceback" not in printed
    again = arguments("worker", "train.dataloader_num_workers=0", flag="--resume")
    assert in_child(again) == 0
    assert_same_run(directory, alone)


HANGS = """
import asyncio
import time


class Hangs:

    calls = 0

    {define} __call__(self, batch):
        self.calls += 1
        if self.calls > 2:
            {wait}(1000)
        return [0.0] * len(batch.captions)
"""


@pytest.mark.parametrize(
    ("define", "wait"),
    [
        ("def", "time.sleep"),
        pytest.param("async def", "await asyncio.sleep", marks=pytest.mark.slow),
    ],
)
def test_a_reward_that_hangs_is_named_and_the_checkpoint_whole(
    define, wait, workplace, monkeypatch, capsys
):
    file = workplace / "hangs.py"
    file.write_text(HANGS.format(define=define, wait=wait))
    hangs = f"rewards.{file}={{weight: 0.0}}"
    with monkeypatch.context() as patch:
        patch.setattr(contract, "LIMIT_SECONDS", 0.5)
        assert cli.main(arguments("hangs", hangs)) == 2
    printed = capsys.readouterr().err
    assert "reward 'hangs' did not come back within 0.5 s" in printed
    assert "runs/hangs/checkpoint-2 is intact. Go on from it with:" in printed
    assert len(printed.strip().splitlines()) == 3
    directory = workplace / "runs" / "hangs"
    assert_goes_on_from(directory, 2)


@pytest.mark.slow
def test_memory_that_ends_is_explained_and_the_checkpoint_whole(workplace, capfd):
    """By the limit of the address space; the allocation that fails is a reward's."""

    def prepare():
        original, count = Length.__call__, []

        def greedy(self, batch):
            count.append(batch)
            if len(count) == 3:
                size = psutil.Process().memory_info().vms
                resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, size + 2**28))
                torch.zeros(2**28)  # 1 GiB
            return original(self, batch)

        Length.__call__ = greedy

    assert in_child(arguments("memory"), prepare) == 2
    printed = capfd.readouterr().err
    directory = workplace / "runs" / "memory"
    newest = files.checkpoints(directory)[0].name
    step = int(newest[11:])
    assert f"vizer_rl: out of memory in step {step + 1}, phase scoring" in printed
    assert f"{newest} is intact. Go on from it with:" in printed
    assert "Traceback" not in printed
    assert_goes_on_from(directory, step)
