"""What several tests share: a workplace with few scenes, drawn once, and tiny runs in it."""

import gc
import os
import shutil
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
FIXTURES = REPO.parent / "shared" / "fixtures"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

TINY = [
    "profile=scenes",
    "data.heldout=6",
    "data.limit=80",
    "monitor.images=4",
    "monitor.audit=false",
    "tracking.wandb=off",
    "train.max_steps=2",
    "train.warmup_steps=0",
    "train.per_device_train_batch_size=16",
    "train.max_completion_length=24",
    "rewards.self_retrieval.hard=8",
    "rewards.self_retrieval.random=8",
    "rewards.alignment.steps=20",
]
# Where the rewards do not matter: only those that need no preparation.
FEW_REWARDS = ["recipe=null", "rewards.alignment=null", "rewards.self_retrieval=null"]


def pytest_collection_modifyitems(items):
    """The rooms whose tests take longest begin first, so that two processes end together."""
    items.sort(key=lambda item: "training" not in item.path.parts)


def pytest_collection_finish():
    """What is imported by now stays: no collection of garbage in a run need walk through it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """At the end all is garbage, and nanobind complains of what is left."""
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def few_trials(request):
    """Runs try certainties on few captions: of 64 that is most of a tiny run's time."""
    with pytest.MonkeyPatch.context() as patch:
        if "rewards" not in request.path.parts:  # tests of the rewards themselves
            patch.setattr("rewards.lib.certain_words.CAPTIONS", 8)
        yield


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """A folder to run in, whose scenes are drawn."""
    from vizer_rl.data import scenes as draw
    from vizer_rl.training import splits

    folder = tmp_path_factory.mktemp("workplace")
    before = Path.cwd()
    os.chdir(folder)
    draw.write(splits.SCENES / "train", 0, splits.TRAIN_SCENES)
    yield folder
    os.chdir(before)
    shutil.rmtree(folder)


@pytest.fixture
def command(workplace, monkeypatch):
    """Runs `vizer-rl train` on a tiny run of a family, in this process, and gives the directory."""
    from vizer_rl import cli

    monkeypatch.chdir(workplace)

    def run(family, name, *more, flags=("--overwrite",)):
        file = str(REPO / "experiments" / f"{family}.yaml")
        code = cli.main(["train", file, *TINY, f"name={name}", *more, *flags])
        assert code in (0, None)
        return workplace / "runs" / name

    return run


@pytest.fixture
def spied(monkeypatch):
    """Every weight before and after training."""
    from vizer_rl.algorithms.grpo import GRPO

    before_after = {}
    original = GRPO.train

    def train(self, *args, **kwargs):
        before = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        result = original(self, *args, **kwargs)
        before_after.update(
            {n: (before[n], p.detach(), p.requires_grad) for n, p in self.model.named_parameters()}
        )
        return result

    monkeypatch.setattr(GRPO, "train", train)
    return before_after
