"""Alarms in a run whose reward is bad: said, written down, and the run ended if it is to be."""

import json

import pytest
import torch

from vizer_rl.config.run_dir import read_run
from vizer_rl.training import train

from ..conftest import REPO

SHORTER = REPO / "experiments" / "audit_validity_rewards" / "longer.py"  # with a weight of -1
BAD = ["train.max_steps=8", "monitor.interval=2", "monitor.images=8", "train.learning_rate=1e-2"]
BAD += ["train.beta=0", f"rewards.{SHORTER}.weight=-1", "train.save_steps=3"]
BAD += [f"rewards.{name}=null" for name in ("self_retrieval", "clip_similarity", "alignment")]
BAD += ["rewards.repetition=null", "rewards.length=null", "recipe=null"]


@pytest.fixture
def bad_run(command, monkeypatch):
    """Runs the bad reward under a name; evaluations of the end are counted, not made."""
    evaluated = []
    monkeypatch.setattr(train.evaluate, "evaluate", lambda run, **_: evaluated.append(run))

    def run(name, *more, flags=("--overwrite",)):
        directory = command("smolvlm", name, *BAD, *more, flags=flags)
        assert evaluated.pop() == directory.relative_to(directory.parents[1])
        return directory

    return run


def rows(directory, name):
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


def same(directory, name):
    """The rows without what differs from one hour to the next, or by the action."""
    skip = ("time/", "step_time", "engine/", "action")
    return [
        {k: v for k, v in row.items() if not k.startswith(skip)} for row in rows(directory, name)
    ]


def test_a_bad_reward_is_told_of_and_the_run_goes_on_or_ends(bad_run, capsys):
    whole = bad_run("alarm-warn")
    printed = " ".join(capsys.readouterr().out.split())
    alarms, evaluations = rows(whole, "alarms.jsonl"), rows(whole, "evaluations.jsonl")
    assert [e["step"] for e in evaluations] == [0, 1, 2, 3, 4, 6, 8]
    assert "heldout_drop" in {alarm["name"] for alarm in alarms}
    for alarm in alarms:
        assert alarm["action"] == "warn"
        assert f"alarm at step {alarm['step']}: {alarm['sentence']}" in printed
    metrics = rows(whole, "metrics.jsonl")
    assert len(metrics) == 8
    assert metrics[3]["heldout/agreement"] == evaluations[4]["agreement"]

    stopped, first = bad_run("alarm-stop", "monitor.on_alarm=stop"), alarms[0]["step"]
    assert [row["step"] for row in rows(stopped, "metrics.jsonl")] == list(range(1, first + 1))
    assert (stopped / f"checkpoint-{first}").is_dir()
    assert "The run ends here, with a checkpoint" in " ".join(capsys.readouterr().out.split())
    bad_run("alarm-stop", "monitor.on_alarm=warn", flags=("--resume",))
    for name in ("alarms.jsonl", "evaluations.jsonl", "metrics.jsonl"):
        assert same(stopped, name) == same(whole, name), name


@pytest.mark.slow
def test_a_roll_back_keeps_the_best_adapter_and_no_checkpoint_of_the_rest(bad_run):
    directory = bad_run("alarm-rollback", "monitor.on_alarm=rollback", "train.save_steps=1")
    alarm, *_ = rows(directory, "alarms.jsonl")
    evaluations = rows(directory, "evaluations.jsonl")
    step = int(alarm["sentence"].removesuffix("'s").rpartition("the adapter kept is step ")[2])
    best = next(e for e in evaluations if e["step"] == step)
    assert best["step"] < alarm["step"] == evaluations[-1]["step"] < 8
    kept = json.loads((directory / "adapter" / "heldout.json").read_text())
    assert kept["score"] == best["score"]
    assert not (directory / f"checkpoint-{alarm['step']}").exists()
    saved = torch.load(directory / "checkpoint-2" / "state_0.pt", weights_only=True)
    assert saved["alarms"]["judge"]["history"]["recent"][-1]["step"] == 2
    assert read_run(directory).monitor.on_alarm == "rollback"
