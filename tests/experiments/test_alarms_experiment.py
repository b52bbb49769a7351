"""The table of the alarms: falls, delays, replay; one tiny set-up for real."""

import json
from math import nan

import pytest

from experiments import alarms, audit_validity, runner
from vizer_rl import cli
from vizer_rl.training.alarm_rules import Limits

from ..audit.test_audit import FEW
from ..training.test_alarm_rules import GOOD, START


def evaluation(evidence, **changes):
    values = {**vars(evidence), **changes}
    return {name: None if value != value else value for name, value in values.items()}


SHORT = [evaluation(START), evaluation(GOOD), evaluation(GOOD, step=20, words=4.0, agreement=nan)]


def test_a_fall_is_where_f1_is_first_too_far_below_its_best():
    assert alarms.fall({0: 0.4, 10: 0.5, 20: 0.46, 30: 0.44, 40: 0.2}) == 30
    assert alarms.fall({20: 0.34, 0: 0.4, 10: 0.5}) == 20
    assert alarms.fall({0: 0.5, 10: 0.46, 20: 0.49}) is None


def test_stored_evidence_is_judged_anew_by_other_limits():
    assert alarms.judged(SHORT, Limits()) == [(20, "length")]
    assert alarms.judged(SHORT, Limits(shorter=0.3)) == []
    assert alarms.judged(SHORT, alarms.read_limits(["entropy=1.5"]))[0] == (10, "entropy")
    with pytest.raises(SystemExit, match="no limit is called nonsense; allowed: drop_errors"):
        alarms.read_limits(["nonsense=1"])


def write(name, seed, f1, given=()):
    folder = audit_validity.Trial(seed=seed).directory(name)
    folder.mkdir(parents=True)
    (folder / alarms.TRUTH).write_text(json.dumps(f1))
    (folder / "evaluations.jsonl").write_text("\n".join(map(json.dumps, SHORT)))
    if given:
        rows = [{"step": step, "name": rule} for step, rule in given]
        (folder / "alarms.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_the_table_says_whether_the_alarm_came_in_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("default", 0, {0: 0.4, 10: 0.9})
    write("longer", 0, {0: 0.4, 10: 0.5, 20: 0.3}, [(10, "length"), (20, "agreement")])
    write("longer", 1, {0: 0.4, 10: 0.3, 20: 0.2}, [(20, "length")])
    write("random", 0, {0: 0.4, 10: 0.41}, [(10, "agreement")])
    set_ups, rules, counts = alarms.tables("smolvlm", [0, 1]).split("\n\n")
    assert set_ups.splitlines()[2:] == [
        "| the default recipe (1) | 0.40, 0.90, 0.90 | – | – | – | – | no |",
        "| random reward (1) | 0.40, 0.41, 0.41 | – | agreement | 10 | – | yes |",
        "| number of words alone (2) | 0.40, 0.50, 0.30 / 0.40, 0.40, 0.20 | 20 / 10 | "
        "length / length | 10 / 20 | -10 / +10 | no / no |",
    ]
    assert "| agreement | 1 of 2 | 1 of 2 | 0 of 1 |" in rules.splitlines()
    assert "| length | 1 of 2 | 0 of 2 | 0 of 1 |" in rules.splitlines()
    assert counts == (
        "In time in 1 of 2 runs that fell; false in 1 of 2 that did not; raised in 0 of 1 of the "
        "default recipe."
    )
    assert "raised in 1 of 1" in alarms.tables("smolvlm", [0, 1], Limits())


@pytest.mark.slow
def test_one_set_up_is_trained_scored_and_in_the_table(workplace, monkeypatch):
    commands = []

    def command(*words):
        commands.append(words[0])
        cli.main(list(words))

    monkeypatch.chdir(workplace)
    monkeypatch.setattr(runner, "command", command)
    monkeypatch.setattr(audit_validity, "INTERVAL", 1)
    trial = audit_validity.Trial(steps=2, overrides=(*FEW, "data.heldout=12"))
    for _ in range(2):
        folder = alarms.train(trial, "random")  # test_audit_validity.py has another
    assert commands == ["train"], "what is done is not done again"
    f1 = json.loads((folder / alarms.TRUTH).read_text())
    assert list(f1) == ["0", "1", "2"]
    result = json.loads((folder / "eval.json").read_text())
    assert f1["0"] == pytest.approx(result["base"]["fact_f1"]["value"])
    assert f1["2"] == pytest.approx(result["trained"]["fact_f1"]["value"])
    assert "| random reward (1) |" in alarms.tables("smolvlm", [0])
