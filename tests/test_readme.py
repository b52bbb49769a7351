"""README does what it says: its reward runs, its targets and files exist, it stays short."""

import re

import pytest

import rewards

from .conftest import REPO
from .stubs import words

README = (REPO / "README.md").read_text()


def test_it_is_short_and_opens_with_the_two_commands():
    assert len(README.splitlines()) < 200
    assert README.index("make train-smolvlm") < README.index("make test") < 500


def test_its_reward_of_twelve_lines_works(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.strip().splitlines()) <= 12
    path = tmp_path / "colourful.py"
    path.write_text(code)
    reward = rewards.make(str(path), {})
    assert reward(words("a red cat", "a red and blue cat", "a cat")) == [0.5, 1.0, 0.0]


def test_its_targets_and_files_exist():
    makefile = (REPO / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z0-9]+(?:-[a-z0-9]+)*)\b", README)) - {"and"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for name in re.findall(r"`((?:vizer_rl|rewards|experiments)/[\w/.]+\.(?:py|yaml))`", README):
        if name != "rewards/colourful.py":
            assert (REPO / name).exists(), name


@pytest.mark.parametrize("word", ["@@", "TO BE MEASURED"])
def test_nothing_is_left_to_fill_in(word):
    files = [README, (REPO / "experiments/README.md").read_text()]
    files += [p.read_text() for p in (REPO / "experiments").glob("*.yaml")]
    assert not any(word in text for text in files)
