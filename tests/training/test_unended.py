"""The base's captions that come to no end: their share is printed, and refused above a bound."""

import json
from types import SimpleNamespace

import pytest

from vizer_rl import cli
from vizer_rl.errors import UserError
from vizer_rl.training.reward_bank import check_ends

from ..conftest import REPO, TINY


def bank(ended):
    return SimpleNamespace(sample=SimpleNamespace(ended=ended, captions=["a"] * 10))


def test_the_share_is_one_sentence_and_refused_above_the_bound():
    assert check_ends(bank([True] * 2 + [False] * 8), 48) == (
        "80% of 10 captions sampled from the base come to no end within 48 tokens "
        "(train.max_completion_length)"
    )
    assert check_ends(bank(None), 48).startswith("0% of 10")
    with pytest.raises(UserError) as caught:
        check_ends(bank([True] + [False] * 9), 48)
    assert str(caught.value) == (
        "90% of 10 captions sampled from the base come to no end within 48 tokens "
        "(train.max_completion_length); allowed: 80%, for a caption without an end cannot be "
        "judged. Set a longer train.max_completion_length, or a data.prompt that asks for less"
    )


def test_a_base_that_ends_none_is_refused_before_anything_is_written(
    workplace, monkeypatch, capsys
):
    monkeypatch.chdir(workplace)
    file = str(REPO / "experiments" / "smolvlm.yaml")
    words = ["train", file, *TINY, "name=endless", "train.max_completion_length=1"]
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert "captions sampled from the base come to no end within 1 tokens" in err
    assert "Set a longer train.max_completion_length" in err
    assert not (workplace / "runs" / "endless").exists()


@pytest.mark.slow
def test_a_run_with_captions_that_come_to_no_end_logs_their_share(command, capsys):
    directory = command("smolvlm", "short", "train.max_completion_length=5", "train.max_steps=1")
    (step,) = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    assert 0 < step["completions/clipped_ratio"] < 1
    assert step["reward/ended"] == pytest.approx(-step["completions/clipped_ratio"])
    assert step["reward/ended/share"] > 0
    assert "come to no end within 5 tokens" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["ended", "gate"])
def test_a_gate_of_negative_weight_is_refused(name, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    file = str(REPO / "experiments" / "smolvlm.yaml")
    assert cli.main(["train", file, *TINY, "name=lifted", f"rewards.{name}.weight=-1"]) == 2
    wanted = f"rewards.{name}.weight: -1; allowed for a gate: 0 (only logged) or more"
    assert wanted in capsys.readouterr().err
