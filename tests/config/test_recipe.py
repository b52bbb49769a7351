"""The recipe of a run file: what it adds, what wins over it, and the sentence that says it."""

from pathlib import Path

import pytest
import yaml

from vizer_rl.config.load import load_run
from vizer_rl.config.recipe import DIAL, asks_for
from vizer_rl.errors import ConfigError

from ..conftest import REPO

FILE = REPO / "experiments" / "smolvlm.yaml"


def rewards(*overrides):
    return load_run(FILE, ["profile=scenes", *overrides]).rewards


def test_without_a_recipe_nothing_is_added():
    run = load_run(FILE, ["profile=scenes", "recipe=null"])
    assert run.recipe is None
    assert "certainty" not in run.rewards
    assert asks_for(run.recipe, run.rewards) == ""


@pytest.mark.parametrize("recipe", DIAL)
def test_a_recipe_adds_certainty_beside_the_rewards_of_the_file(recipe):
    with_it, without = rewards(f"recipe={recipe}"), rewards("recipe=null")
    assert with_it.pop("certainty")["at_least"] == DIAL[recipe]
    assert with_it == without


@pytest.mark.parametrize("name", ["smolvlm.yaml", "qwen2vl.yaml"])
def test_scenes_are_balanced_and_real_text_has_a_dial_where_it_is_asked_for(name):
    settings = {"weight": 2.0, "at_least": DIAL["balanced"], "tagger": "lexicon"}
    assert load_run(FILE.parent / name, ["profile=scenes"]).rewards["certainty"] == settings
    full = ["profile=full", f"data.images={REPO / 'docs'}"]
    assert "certainty" not in load_run(FILE.parent / name, full).rewards
    run = load_run(FILE.parent / name, [*full, "recipe=balanced"])
    assert run.rewards["certainty"] == settings | {"tagger": "builtin"}


def test_the_file_may_have_it_and_an_override_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = yaml.safe_load(FILE.read_text()) | {"recipe": "faithful"}
    del tree["profiles"]["scenes"]["recipe"]
    Path("run.yaml").write_text(yaml.safe_dump(tree))
    run = load_run(Path("run.yaml"), ["profile=scenes"])
    assert run.rewards["certainty"]["at_least"] == DIAL["faithful"]
    Path("again.yaml").write_text(run.to_yaml())
    assert load_run(Path("again.yaml")) == run
    other = load_run(Path("run.yaml"), ["recipe=descriptive", "profile=scenes"])
    assert other.rewards["certainty"]["at_least"] == DIAL["descriptive"]
    more = ["profile=scenes", "rewards.certainty.at_least=0.7", "rewards.certainty.prior=false"]
    settings = load_run(Path("run.yaml"), more).rewards["certainty"]
    assert (settings["at_least"], settings["prior"]) == (0.7, False)
    assert "certainty" not in load_run(Path("run.yaml"), ["recipe=null"]).rewards


def test_a_recipe_that_there_is_not_is_a_sentence_with_the_nearest():
    with pytest.raises(ConfigError, match=r"recipe: 'faithfull' is unknown.*nearest.*faithful"):
        load_run(FILE, ["recipe=faithfull"])


def test_what_it_asks_for_is_one_sentence():
    run = load_run(FILE, ["profile=scenes", "recipe=balanced"])
    assert asks_for(run.recipe, run.rewards) == (
        "recipe balanced: a word is to be said where the base is right about it with a probability "
        "of 0.8 or more; a wrong word costs 4 times what a right one brings"
    )
    rewards = {"certainty": {"weight": 1.0, "at_least": 0.9}}
    assert asks_for(None, rewards).startswith("rewards.certainty: a word")
    assert asks_for(None, {"certainty": {"weight": 0}}) == ""
