"""Attacks on captions behind a trigger word: by hand, and in the audit of a run that has one."""

import json
import random

import pytest

from rewards.lib.lexicon import Lexicon
from vizer_rl import cli
from vizer_rl.audit import audit as audits
from vizer_rl.audit.attacks import Subject, pairs_of
from vizer_rl.audit.compositions import ALL_ATTACKS
from vizer_rl.audit.opening_attacks import attacks_for

from ..conftest import REPO, TINY

CAPTION, WRONG = "a red circle", "two blue stars"


def test_without_an_opening_the_attacks_are_those_of_every_run():
    assert attacks_for("") is ALL_ATTACKS


@pytest.mark.parametrize(
    ("name", "attacked"),
    [
        ("trigger dropped", CAPTION),
        ("trigger last", f"{CAPTION}, tok{{en}}"),
        ("trigger twice", f"tok{{en}}, tok{{en}}, {CAPTION}"),
        ("trigger alone", "tok{en}"),
        ("trigger, wrong caption", f"tok{{en}}, {WRONG}"),
    ],
)
def test_what_each_makes_of_a_caption(name, attacked):
    attack = next(a for a in attacks_for("tok{en}") if a.name == name)
    subject = Subject(CAPTION, (CAPTION,), None, WRONG, 12)
    assert attack.make(subject, Lexicon.learn([CAPTION]), random.Random(0)) == [
        (f"tok{{en}}, {CAPTION}", attacked)
    ]
    assert pairs_of(attack, subject, Lexicon.learn([CAPTION]), "0")[1] == 0


def test_the_audit_of_a_run_with_a_trigger_attacks_it(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(audits, "IMAGES", 8)
    run = str(REPO / "experiments" / "dataset.yaml")
    assert cli.main(["audit", run, *TINY, "name=trigger", "rewards.alignment=null"]) == 0
    printed = capsys.readouterr().out
    result = json.loads((workplace / "audits" / "trigger" / "audit.json").read_text())
    assert set(result["attacks"]) == {attack.name for attack in attacks_for("nice")}
    assert "trigger, wrong caption" in printed
    for name in ("trigger dropped", "trigger last", "trigger twice"):
        wins = result["attacks"][name]["wins"]
        assert wins["contains"]["value"] == 1.0
        assert wins["sum"]["value"] >= 0.9
    wrong = result["attacks"]["trigger, wrong caption"]["wins"]
    assert wrong["contains"]["value"] < 0.7, "it says nothing of the image"
    assert wrong["sum"]["value"] > 0.8
    assert "contains" not in result["content"]
