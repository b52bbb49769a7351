"""Rewards of finished captions: by row, with their sum over both rows, None where none judges."""

from types import SimpleNamespace

import pytest

from vizer_rl.data.sources import ImageFolder
from vizer_rl.scoring.reward_functions import Reward, RewardFunctions
from vizer_rl.training.controls import BasePolicy, caption_rewards


class Words:
    reads = ("text",)

    def __call__(self, batch):
        return [float(len(caption.split())) for caption in batch.captions]


class Ended:
    """A gate, which refuses what was cut."""

    gates = True

    def __call__(self, batch):
        return [0.0 if ended else -1.0 for ended in batch.ended]


@pytest.fixture
def policy(tmp_path):
    policy = BasePolicy.__new__(BasePolicy)  # without a model: no reward here needs one
    policy.run = SimpleNamespace(train={"max_completion_length": 4})
    policy.reference = SimpleNamespace(token_ids=lambda text: [5] * len(text.split()))
    rewards = [Reward("words", 1.0, Words()), Reward("ended", 1.0, Ended())]
    policy.scoring = RewardFunctions(rewards, lambda name: None, policy.reference, [9, 7], 8)
    return policy


def test_each_row_has_its_raw_rewards_and_their_sum_over_both(policy):
    images = ImageFolder("", None, ["x", "y"], {})
    captions = {"base": ["a", "a b"], "trained": ["a b c", "a b c d"]}
    rows = caption_rewards(policy, images, captions)
    assert [row["words"] for row in rows["base"]] == [1.0, 2.0]
    assert [row["words"] for row in rows["trained"]] == [3.0, None]
    assert [row["ended"] for row in rows["trained"]] == [0.0, -1.0]
    assert rows["base"][0]["sum"] < rows["base"][1]["sum"] < rows["trained"][0]["sum"]
    assert rows["trained"][1]["sum"] < rows["base"][1]["sum"]  # below the other of its image
