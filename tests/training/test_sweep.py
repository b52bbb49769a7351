"""The sweep of the learning rate: its runs, its choice, and the real command, two steps a rate."""

import json
import shutil

import numpy as np
import pytest

from vizer_rl import cli
from vizer_rl.config.load import load_run
from vizer_rl.errors import UserError
from vizer_rl.training import sweep
from vizer_rl.training.sweep import Trial, alarms, choose, mean_and_error

from ..conftest import REPO, TINY

FILE = REPO / "experiments/smolvlm.yaml"
RATES = ("0.00017", "0.0005", "0.0015")


def trial(rate, gains, kl=0.01):
    gains = np.array(gains)
    return Trial(rate, np.zeros(len(gains)), gains, (5.0, 9.0), 0.0, kl)


def test_the_runs_are_the_runs_own_with_three_rates_and_100_steps():
    run = load_run(FILE, ["profile=scenes", "name=x", "train.max_steps=400"])
    runs = sweep.sweep_runs(run)
    assert [one.name for one in runs] == [f"x-lr-{rate}" for rate in RATES]
    assert [one.train["learning_rate"] for one in runs] == [float(rate) for rate in RATES]
    assert {one.train["max_steps"] for one in runs} == {100}
    assert [one.monitor.audit for one in runs] == [True, False, False]
    same = {"learning_rate", "max_steps"}
    for one in runs:
        assert {k: v for k, v in one.train.items() if k not in same} == {
            k: v for k, v in run.train.items() if k not in same
        }
    with pytest.raises(UserError, match="a sweep needs a rate above 0"):
        sweep.sweep_runs(load_run(FILE, ["profile=scenes", "train.learning_rate=0"]))
    few = load_run(FILE, ["profile=scenes", "train.max_steps=3"])
    assert {one.train["max_steps"] for one in sweep.sweep_runs(few)} == {3}


def test_mean_and_standard_error_by_hand():
    mean, error = mean_and_error(np.array([1.0, 2.0, 3.0, 6.0]))
    assert mean == 3.0
    assert error == pytest.approx((14 / 3) ** 0.5 / 2)  # squares 4 + 1 + 0 + 9, over 3; root of 4
    assert mean_and_error(np.array([1.0]))[1] == np.inf


def test_the_best_rate_is_taken_where_it_leads_beyond_noise():
    low, base, high = (trial(r, [g, g + 0.01] * 8) for r, g in ((1, 0.01), (2, 0.02), (3, 0.06)))
    taken, sentence = choose([low, base, high])
    assert taken is high
    # standard error: each is .005 from its mean, .005 * sqrt(16 / 15) / 4
    assert sentence.startswith(
        "Take train.learning_rate=3: the held-out score rises by +0.0650 ± 0.0013"
    )
    assert "noise" not in sentence


def test_the_lower_of_two_rates_is_taken_where_their_difference_is_noise():
    base, high = trial(2, [0.05, 0.07] * 8), trial(3, [0.05, 0.07] * 7 + [0.05, 0.10])
    worse = trial(1, [0.01, 0.02] * 8)
    taken, sentence = choose([worse, base, high])
    assert taken is base
    # one of 16 images differs, by .03: mean .001875 and standard error the same
    assert sentence.endswith("; 3 is +0.0019 ± 0.0019 above it, which is noise.")


def test_a_rate_whose_own_gain_is_noise_is_not_taken_for_being_low():
    low, high = trial(1, [-0.1, 0.16] * 8), trial(2, [0.03, 0.05] * 8)
    assert choose([low, high])[0] is high


def test_none_is_taken_where_none_improves():
    taken, sentence = choose([trial(1, [-0.02, 0.02] * 8), trial(2, [-0.03, 0.01] * 8)])
    assert taken is None
    assert sentence.startswith(
        "No rate improves the held-out score beyond noise: the best, 1, by +0.0000 ± 0.0052"
    )


def test_alarms_name_the_rate_that_left_its_language_or_changed_nothing():
    trials = [trial(1, [0.0] * 4), trial(2, [0.1] * 4), trial(3, [0.2] * 4, kl=0.8)]
    still, far = alarms(trials)
    assert still == "1: training changed no held-out score."
    assert far.startswith("3: KL 0.80 nats per token")


def test_under_a_dial_rates_are_compared_by_what_it_asks_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rewards = [{"certainty": -2.0}, {"certainty": None}, {"certainty": 1.5}]
    row = {"base": "a b", "trained": "a", "base_score": 0.5, "trained_score": 0.25}
    lines = [row | {"base_rewards": rewards[0], "trained_rewards": r} for r in rewards]
    run = load_run(FILE, ["profile=scenes", "name=dialled"])
    run.directory.mkdir(parents=True)
    (run.directory / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (run.directory / "metrics.jsonl").write_text(json.dumps({"kl": 0.25}) + "\n")
    dialled = sweep.read_trial(run)
    assert dialled.before_N.tolist() == [-2.0] * 3
    assert dialled.after_N.tolist() == [-2.0, 0.0, 1.5]
    assert choose([dialled])[1].startswith("No rate improves the certainty beyond noise: the best")
    plain = sweep.read_trial(load_run(FILE, ["profile=scenes", "name=dialled", "recipe=null"]))
    assert (plain.measure, plain.after_N.tolist()) == ("held-out score", [0.25] * 3)


@pytest.mark.slow
def test_a_sweep_through_the_command_goes_on_and_prints_what_to_take(
    command, workplace, monkeypatch, capsys
):
    def folder(rate):
        return workplace / "runs" / f"swept-lr-{rate}"

    flags = ("--sweep", "lr")
    command("smolvlm", "swept", "train.save_steps=1", "recipe=null", flags=flags)
    shown = capsys.readouterr().out
    assert not (workplace / "runs/swept").exists()
    for rate in RATES:
        steps = (folder(rate) / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(step)["step"] for step in steps] == [1, 2]
        assert json.loads(steps[0])["learning_rate"] == pytest.approx(float(rate))
    printed = shown[shown.index("Sweep of the learning rate") :]
    assert [line.split()[0] for line in printed.splitlines() if "→" in line] == list(RATES)
    assert ("Take train.learning_rate=" in printed) != ("No rate improves" in printed)
    scores = json.loads((folder(RATES[1]) / "eval.json").read_text())
    result = [scores[side]["heldout_score"]["value"] for side in ("base", "trained")]
    assert "{:.4f} → {:.4f}".format(*result) in printed

    calls, train = [], sweep.train
    monkeypatch.setattr(sweep, "train", lambda run, **kw: calls.append(kw) or train(run, **kw))
    command("smolvlm", "swept", "train.save_steps=1", "recipe=null", flags=flags)
    assert calls == []
    again = capsys.readouterr().out
    assert again[again.index("Sweep of") :] == printed

    (folder(RATES[0]) / "captions.jsonl").unlink()  # stopped before its evaluation
    shutil.rmtree(folder(RATES[0]) / "checkpoint-2")  # and before its last step
    for file in ("captions.jsonl", "checkpoint-1", "checkpoint-2"):  # this one before any
        path = folder(RATES[2]) / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    command("smolvlm", "swept", "train.save_steps=1", "recipe=null", flags=flags)
    first, last = {"resume": True, "overwrite": False}, {"resume": False, "overwrite": True}
    assert calls == [first, last]
    again = capsys.readouterr().out
    assert again[again.index("Take") if "Take" in again else again.index("No rate") :] in shown


@pytest.fixture
def refused(workplace, monkeypatch, capsys):
    """The sentence with which a sweep is refused; nothing is trained."""
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sweep, "train", None)

    def run(*words):
        assert cli.main(["train", str(FILE), *TINY, "name=other", "--sweep", "lr", *words]) == 2
        return capsys.readouterr().err

    return run


def test_a_finished_run_with_other_settings_is_never_taken_for_this_one(refused, workplace):
    run = load_run(FILE, [*TINY, "name=other", "seed=7"])
    one = sweep.sweep_runs(run)[1]
    path = workplace / one.directory / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(one.to_yaml())
    assert refused() == (
        "vizer_rl: runs/other-lr-0.0005 was run with other settings (seed): --overwrite runs the "
        "sweep anew, or give another name\n"
    )
    path.write_text("")
    path.unlink()
    assert "runs/other-lr-0.0005" in refused()  # a folder of something else is not deleted
    assert path.parent.is_dir()
    assert "exclude each other" in refused("--resume", "--overwrite")


def test_a_wrong_sweep_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["train", str(FILE), "--sweep", "ls"])
    assert left.value.code == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "invalid choice: 'ls'" in sentence
    assert sentence.endswith("; nearest: lr")
