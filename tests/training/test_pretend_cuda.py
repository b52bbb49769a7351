"""The demo on a CUDA device that is none: every tensor on the right one, sampling by graphs."""

import os
import subprocess
import sys

import pytest

from ..conftest import REPO, TINY

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
HALF = ("policy.dtype=bfloat16", "train.bf16=true", "train.gradient_checkpointing=true")


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("qwen2vl", ()),
        pytest.param("smolvlm", HALF, marks=pytest.mark.slow),
        pytest.param(
            "smolvlm", ("algorithm=ppo", "train.value_trunk=adapter"), marks=pytest.mark.slow
        ),
        pytest.param("qwen2vl", ("algorithm=vizer",), marks=pytest.mark.slow),
    ],
)
def test_a_run_keeps_to_its_device(family, more, tmp_path, workplace):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scenes").symlink_to(workplace / "data" / "scenes")
    file = str(REPO / "experiments" / f"{family}.yaml")
    command = [sys.executable, "-m", "tests.pretend_cuda", "train", file, *TINY, *more]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    *_, last = done.stdout.splitlines()
    graphs, replays = (int(word) for word in last.split() if word.isdigit())
    assert replays > graphs >= 2
