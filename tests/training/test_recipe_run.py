"""Two steps of a run with a recipe: what it prints, logs and stores; the words of one caption."""

import json
import re

from vizer_rl import cli
from vizer_rl.scoring.offered_states import OfferedStates

from ..conftest import REPO, TINY

FILE = str(REPO / "experiments" / "smolvlm.yaml")
LEAN = ["rewards.alignment=null", "rewards.self_retrieval=null"]


def test_two_steps_of_a_recipe_read_the_trainers_own_pass(command, monkeypatch, capsys):
    found = []
    find = OfferedStates.find

    def spied(self, images, completions):
        result = find(self, images, completions)
        found.append((len(completions), sum(states is not None for states in result)))
        return result

    monkeypatch.setattr(OfferedStates, "find", spied)
    monkeypatch.setattr("rewards.certainty.sight_objection", lambda own, other: "it sees nothing")
    directory = command("smolvlm", "sure", "recipe=faithful", *LEAN, "monitor.audit=true")
    printed = " ".join(capsys.readouterr().out.split())
    assert "recipe faithful: a word is to be said where the base is right" in printed
    assert "reward 'certainty': certainty → agreement of views (words)" in printed
    audit = json.loads((directory / "audit.json").read_text())
    assert audit["objections"]["certainty"] == "it sees nothing"
    assert audit["verdict"]["overall"] == "fail"
    rows = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
    assert all(abs(row["reward/certainty"]) > 0 for row in rows)
    assert all(row["time/reward/certainty"] > 0 for row in rows)
    assert json.loads((directory / "rewards" / "certainty.json").read_text())["at_least"] == 0.9
    assert [n == m for n, m in found if m] == [True] * 2, "of all captions, in both steps"


def test_the_words_of_a_caption_are_scored_and_those_under_the_dial_marked(
    workplace, monkeypatch, capsys
):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("COLUMNS", "120")
    image = workplace / "data/scenes/train/images/0000003.png"  # a small striped orange square
    ask = ["score", FILE, str(image), "a orange heart", *TINY, *LEAN, "recipe=balanced"]
    assert cli.main(ask) == 0
    printed = capsys.readouterr().out
    assert "*heart* 0." in printed, "a square"
    assert re.search(r" orange [01]\.\d\d \(by sight [01]\.\d\d\)", printed)


def test_a_dial_outside_its_range_is_one_sentence(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    more = [*TINY, "rewards.certainty={at_least: 0.4}"]
    assert cli.main(["train", FILE, *more, "--overwrite"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "rewards.certainty: " in line
    assert line.endswith("need at_least between 0.5 and 1, not 0.4")
