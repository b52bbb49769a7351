"""Runs that are killed by SIGKILL and go on: they are, to the bit, the run that never stopped.

The command runs in forked children, one thread each. A kill comes at a random moment of a phase.
"""

import json
import os
import random
import signal
import threading
from pathlib import Path

import pytest

from vizer_rl import files
from vizer_rl.algorithms.grpo import GRPO
from vizer_rl.scoring.reward_functions import RewardFunctions
from vizer_rl.training.heldout_monitor import HeldoutMonitor

from ..children import in_child
from ..conftest import REPO, TINY

pytestmark = pytest.mark.faults

SETTINGS = [
    "data.limit=16",
    "data.heldout=4",
    "monitor.interval=2",
    "train.max_steps=6",
    "train.save_steps=1",
]
SETTINGS += ["train.per_device_train_batch_size=16", "train.gradient_accumulation_steps=2"]
PHASES = {  # what is going on when the kill comes
    "sampling": (GRPO, "_generate_single_turn"),
    "scoring": (RewardFunctions, "scores"),
    "learning": (GRPO, "training_step"),
    "saving": (GRPO, "_save_checkpoint"),
    "sealing": (files, "_sync"),
    "evaluating": (HeldoutMonitor, "evaluate"),
    "keeping": (HeldoutMonitor, "_keep_adapter"),
}


def send_in(phase, call, seconds, number=signal.SIGKILL):
    """In the child: this signal comes so many seconds after a call of the phase has begun."""
    holder, name = PHASES[phase]
    original, count = getattr(holder, name), [0]

    def watched(*args, **kwargs):
        count[0] += 1
        if count[0] == call:
            threading.Timer(seconds, os.kill, (os.getpid(), number)).start()
        return original(*args, **kwargs)

    setattr(holder, name, watched)


def logged(directory):
    rows = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
    skip = ("time/", "step_time", "engine/tokens_per_second", "engine/vision_cache_hit_rate")
    return [{k: v for k, v in row.items() if not k.startswith(skip)} for row in rows]


def assert_same_run(left, right):
    assert [row["step"] for row in logged(left)] == list(range(1, len(logged(right)) + 1))
    for row, other in zip(logged(left), logged(right), strict=True):
        differs = {k: (row.get(k), other.get(k)) for k in {*row, *other}}
        assert {k: pair for k, pair in differs.items() if pair[0] != pair[1]} == {}
    for file in ("adapter/adapter_model.safetensors", "captions.jsonl"):
        assert (left / file).read_bytes() == (right / file).read_bytes(), file


def killed_and_resumed(family, algorithm, name, kills, seed, same_run):
    """Kill runs so many times in all, each followed by --resume; what the kills were.

    A run that comes to its end is checked by `same_run`, and another one begun.
    """
    draw = random.Random(seed)
    file = str(REPO / "experiments" / f"{family}.yaml")
    run = ["train", file, *TINY, *SETTINGS, f"algorithm={algorithm}", f"name={name}"]
    flag, moments = "--overwrite", list[str]()
    while len(moments) < kills:
        phase, call, seconds = draw.choice(sorted(PHASES)), draw.randint(1, 3), draw.uniform(0, 0.3)
        code = in_child([*run, flag], lambda p=phase, c=call, s=seconds: send_in(p, c, s))
        assert code in (0, -signal.SIGKILL)
        if code:
            moments.append(f"{phase} {call} +{seconds:.2f} s")
        else:
            same_run()
        begun = files.checkpoints(Path("runs") / name)
        flag = "--resume" if code and begun else "--overwrite"
    if flag == "--resume":
        assert in_child([*run, flag]) == 0
        same_run()
    return moments


@pytest.fixture(scope="module")
def whole(workplace):
    """Runs that were never stopped, by family and algorithm."""
    runs = {}

    def run(family, algorithm):
        name = f"never-stopped-{family}-{algorithm}"
        if name not in runs:
            file = str(REPO / "experiments" / f"{family}.yaml")
            settings = [*TINY, *SETTINGS, f"algorithm={algorithm}", f"name={name}"]
            assert in_child(["train", file, *settings, "--overwrite"]) == 0
            runs[name] = workplace / "runs" / name
        return runs[name]

    return run


@pytest.fixture(autouse=True)
def in_workplace(workplace, monkeypatch):
    monkeypatch.chdir(workplace)


def test_three_kills_change_nothing(whole, workplace):
    def same_run():
        assert_same_run(workplace / "runs" / "killed", whole("smolvlm", "ppo"))

    killed_and_resumed("smolvlm", "ppo", "killed", 3, 1, same_run)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
@pytest.mark.parametrize("family", ["smolvlm", "qwen2vl"])
def test_twenty_kills_change_nothing(family, algorithm, whole, workplace):
    """Five of the twenty for each family and algorithm, one run after another."""

    def same_run():
        assert_same_run(workplace / "runs" / "killed", whole(family, algorithm))

    seed = f"{family} {algorithm}"
    moments = killed_and_resumed(family, algorithm, "killed", 5, seed, same_run)
    print(f"\n{seed}: killed in {'; '.join(moments)}")


@pytest.mark.parametrize(
    ("number", "phase"),
    [
        pytest.param(signal.SIGINT, "sampling", marks=pytest.mark.slow),
        (signal.SIGTERM, "learning"),
    ],
)
def test_a_signal_ends_a_run_with_a_checkpoint(number, phase, whole, workplace, capfd):
    """PPO, in the middle of a step and, for SIGTERM, of a rollout."""
    directory = whole("smolvlm", "ppo")
    file = str(REPO / "experiments" / "smolvlm.yaml")
    run = ["train", file, *TINY, *SETTINGS, "algorithm=ppo", "name=stopped"]
    call = {"sampling": 2, "learning": 7}[phase]
    often = "train.save_steps=500"
    code = in_child([*run, often, "--overwrite"], lambda: send_in(phase, call, 0.0, number))
    assert code == 128 + number
    assert "--resume" in capfd.readouterr().err
    assert len(files.checkpoints(workplace / "runs" / "stopped")) == 1
    assert in_child([*run, "--resume"]) == 0
    if number == signal.SIGINT:
        assert in_child([*run, "--resume"]) == 0  # nothing is left to do
    assert_same_run(workplace / "runs" / "stopped", directory)
