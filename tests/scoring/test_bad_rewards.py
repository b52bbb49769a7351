"""What is wrong with a reward file or its parameters: one clear sentence each, before training."""

import sys

import pytest

import rewards
from vizer_rl import cli
from vizer_rl.config.load import load_run
from vizer_rl.errors import ConfigError

from ..conftest import REPO
from ..stubs import words

pytestmark = pytest.mark.faults

FILE = REPO / "experiments" / "smolvlm.yaml"


@pytest.mark.parametrize(
    ("name", "captions"),
    [
        ("self_retreival", ["unknown reward", "'self_retrieval'", "clip_similarity"]),
        ("nowhere.module.Reward", ["no module 'nowhere'"]),
        ("missing/file.py", ["missing/file.py", "does not exist"]),
        ("rewards.length.Lenght", ["has no 'Lenght'", "nearest: Length"]),
    ],
)
def test_an_unknown_reward_is_one_sentence(name, captions):
    with pytest.raises(ValueError, match="reward") as caught:
        rewards.find(name)
    assert all(w in str(caught.value) for w in captions)


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("def mine(batch)\n    return []\n", "has a syntax error: .*mine.py, line 1: expected ':'"),
        ("import notthere\n", "needs the package 'notthere', which is not installed"),
        ("x = 1 / 0\n", r"cannot be loaded: ZeroDivisionError: .*\(.*mine.py:1\)"),
        ("class A:\n    pass\nclass B:\n    pass\n", "one public class .* it has A and B: begin"),
        ("def a(b):\n    pass\ndef c(b):\n    pass\n", "one public function.* it has a and c: "),
        ("x = 1\n", "it has none"),
    ],
)
def test_a_bad_file_is_told_with_the_others_before_anything_runs(tmp_path, text, captions):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=captions) as caught:
        load_run(FILE, ["profile=scenes", f"rewards.{path}={{}}", "seed=x"])
    assert "seed: 'x'" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


def test_a_file_that_was_mended_is_read_anew(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def mine(batch)\n")
    with pytest.raises(ValueError, match="syntax error"):
        rewards.find(str(path))
    path.write_text("def mine(batch):\n    return [-float(len(c)) for c in batch.captions]\n")
    assert rewards.make(str(path), {})(words("ab", "abc")) == [-2.0, -3.0]


def test_a_file_may_hold_a_dataclass_and_what_begins_with_an_underscore(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "class _Other:\n    pass\n"
        "@dataclass\nclass Mine:\n    most: int = 3\n"
        "    def __call__(self, batch):\n        return [self.most] * len(batch.captions)\n"
    )
    assert rewards.make(str(path), {"most": 5})(words("a")) == [5]
    load_run(FILE, ["profile=scenes", f"rewards.{path}={{most: 4}}"])
    with pytest.raises(ConfigError, match=r"unknown parameter; .*nearest: most"):
        load_run(FILE, ["profile=scenes", f"rewards.{path}={{msot: 4}}"])


def test_a_class_in_a_module_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "mypackage_r").mkdir()
    (tmp_path / "mypackage_r" / "mine.py").write_text(
        "class A:\n    def __call__(self, b):\n        return [1.0]\nclass B(A):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    assert rewards.make("mypackage_r.mine.B", {})(words("a")) == [1.0]
    assert rewards.title("mypackage_r.mine.B") == "B"


def test_names_that_are_alike_in_the_log_are_refused(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text("def mine(batch):\n    return []\n")
    shadow = tmp_path / "length.py"
    shadow.write_text("def length(batch):\n    return []\n")
    with pytest.raises(ConfigError, match="name in the log is 'length', which 'length' has too"):
        load_run(FILE, ["profile=scenes", f"rewards.{shadow}={{}}"])
    both = [f"rewards.{tmp_path}/{folder}/mine.py={{}}" for folder in ("one", "two")]
    with pytest.raises(ConfigError, match=r"name in the log is 'mine', which '.*one/mine.py' has"):
        load_run(FILE, ["profile=scenes", *both])
    assert rewards.title(str(shadow)) == "length"


def test_a_choice_and_a_dependency_are_told_by_name(monkeypatch, tmp_path, capsys):
    one = "rewards.region_grounding.tagger=spcy"
    with pytest.raises(ConfigError, match="'spcy' is unknown; allowed: builtin, spacy; nearest"):
        load_run(FILE, ["profile=scenes", one])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "spacy", None)
    arguments = ["train", str(FILE), "profile=scenes", "rewards.region_grounding.tagger=spacy"]
    assert cli.main(arguments) == 2
    printed = capsys.readouterr().err
    assert "rewards.region_grounding: spacy is not installed" in printed
    assert "vizer_rl[grounding]" in printed
    assert not list(tmp_path.iterdir()), "nothing was begun"
    assert cli.main([*arguments[:3], "rewards.length={shortest: 9, longest: 3}"]) == 2
    assert "rewards.length: length: need 0 < shortest <= longest" in capsys.readouterr().err


def test_an_encoder_that_is_unknown_is_one_sentence():
    import torch

    from vizer_rl.errors import UserError
    from vizer_rl.scoring.clip import Encoders

    encoders = Encoders("embedded:a", torch.device("cpu"), torch.float32)
    with pytest.raises(UserError, match=r"encoder 'ViT-B-23/openai' is unknown; .*nearest: ViT-B"):
        encoders("ViT-B-23/openai")
    with pytest.raises(UserError, match="encoder 'clip' is unknown"):
        encoders("clip")
