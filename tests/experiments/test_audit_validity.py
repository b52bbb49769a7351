"""The command behind the table of foretold outcomes: its judgement, its table, one tiny set-up."""

import importlib.util
import json

import pytest

from vizer_rl import cli

from ..audit.test_audit import FEW
from ..conftest import REPO

spec = importlib.util.spec_from_file_location(
    "audit_validity", REPO / "experiments" / "audit_validity.py"
)
foretell = importlib.util.module_from_spec(spec)
spec.loader.exec_module(foretell)


def told(f1, wrong):
    change = {
        "fact_f1": {"value": f1, "low": f1 - 0.03, "high": f1 + 0.03},
        "hallucination_rate": {"value": wrong, "low": wrong - 0.03, "high": wrong + 0.03},
    }
    sides = {side: {"fact_f1": {"value": v}} for side, v in (("base", 0.5), ("trained", 0.5 + f1))}
    return {"change": change, **sides}


@pytest.mark.parametrize(
    ("f1", "wrong", "came"),
    [(0.4, -0.15, "good"), (0.4, 0.01, "mixed"), (0.01, -0.1, "bad"), (-0.3, 0.5, "bad")],
)
def test_what_training_did_is_judged_by_the_truth(f1, wrong, came):
    assert foretell.outcome(told(f1, wrong)) == came


def test_a_line_of_the_table_says_whether_the_audit_foretold():
    lines = [{"level": "warn", "about": "scorer", "says": "", "do": ""}]
    foretold = {"verdict": {"overall": "warn", "lines": lines}}
    said = foretell.row("weak scorer", [(foretold, told(0.4, 0.01))])
    assert said == (
        "| weak scorer | warn scorer | +0.400 [+0.370, +0.430] | +0.010 [-0.020, +0.040] "
        "| 0.500 → 0.900 | mixed | yes |"
    )
    fine = {"verdict": {"overall": "pass", "lines": []}}
    assert foretell.row("x", [(fine, told(-0.3, 0.5))]).endswith("| bad | no: missed |")
    both = foretell.row("x", [(foretold, told(0.4, 0.01)), (fine, told(0.2, -0.1))])
    assert both == (
        "| x | warn scorer / pass | +0.300 [+0.170, +0.430] | -0.045 [-0.130, +0.040] "
        "| 0.500 → 0.800 | mixed / good | yes |"
    )
    assert {came for _, came in foretell.AGREED} == {"good", "mixed", "bad"}


def test_at_least_ten_set_ups_and_each_leaves_a_reward():
    assert len(foretell.SETUPS) >= 10
    alone = foretell.only("clip_similarity")
    assert "rewards.self_retrieval=null" in alone
    assert "rewards.clip_similarity=null" not in alone
    assert "rewards.random.weight=1" in foretell.only("random")


def test_one_set_up_runs_once_and_is_in_the_table(workplace, monkeypatch):
    from vizer_rl.audit import audit

    asked = []

    def command(*words):
        asked.append(words[0])
        cli.main(list(words))

    monkeypatch.chdir(workplace)
    monkeypatch.setattr(foretell, "command", command)
    monkeypatch.setattr(audit, "IMAGES", 8)
    trial = foretell.Trial(steps=2, more=tuple(FEW))
    for _ in range(2):
        directory = trial.run("constant")
    assert asked == ["train", "audit"], "what is done is not done again"
    verdict = json.loads((directory / "audit.json").read_text())["verdict"]
    assert verdict["overall"] == "fail"
    assert verdict["lines"][0]["about"] == "ties"
    head, _, line = foretell.table([trial]).splitlines()
    assert line.startswith("| constant reward | fail ties |")
    assert head.count("|") == line.count("|")
