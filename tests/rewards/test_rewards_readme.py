"""The worked example of rewards/README.md does what the page says."""

import re

import rewards
from vizer_rl.data import scenes as draw

from ..conftest import REPO
from ..stubs import batch

README = (REPO / "rewards" / "README.md").read_text()


def test_the_worked_example_keeps_the_contract_and_reaches_its_rate(tmp_path):
    path = tmp_path / "palette.py"
    path.write_text(re.search(r"```python\n(.*?)```", README, re.DOTALL)[1])
    module, reward = rewards.load_module(str(path)), rewards.make(str(path), {})
    assert rewards.cost(str(path)) == "one small copy of each image"
    scenes = [draw.sample(k) for k in range(60)]
    result = batch(None, [(str(k), s.caption) for k, s in enumerate(scenes)])
    result.images[:] = [draw.render(s) for s in scenes]
    wrong = batch(None, [(str(k), scenes[k - 1].caption) for k in range(60)])
    wrong.images[:] = result.images
    assert module.check(reward, result, wrong) >= module.RATE
    assert all(0 <= s <= 1 for s in reward(result))
    assert reward(batch(None, [("0", "nothing")])) == [0.0]


def test_everything_a_reward_may_declare_is_on_the_page():
    declared = re.findall(r"^    (\w+)(?: =|\(|  )", rewards.__doc__, re.MULTILINE)
    assert len(declared) == 12
    assert all(f"`{word}" in README for word in declared), declared
    for name in re.findall(r"`((?:vizer_rl|rewards|experiments)/[\w/.]+\.(?:py|yaml))`", README):
        assert name == "rewards/palette.py" or (REPO / name).is_file()
