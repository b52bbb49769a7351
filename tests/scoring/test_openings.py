"""What captions begin with: the reward that wants it reads it, no other reward and no CLIP does."""

import asyncio

import pytest
import torch

from rewards import make
from vizer_rl.scoring.clip import Encoders
from vizer_rl.scoring.reward_functions import Reward, RewardFunctions

from ..stubs import EOS

CAPTIONS = ["ohwx, a dog", "a dog"]


class Reader:
    """A reward that keeps the captions that it gets."""

    def __init__(self, opening=""):
        self.opening, self.captions = opening, None

    def __call__(self, batch):
        self.captions = batch.captions
        return [0.0] * len(batch.captions)


class Later(Reader):
    """The same, asynchronous."""

    async def __call__(self, batch):
        await asyncio.sleep(0)
        return super().__call__(batch)


def scores(*rewards):
    functions = RewardFunctions(list(rewards), lambda name: None, None, [EOS], 2)
    batch = functions.batch(["x"] * 2, [None] * 2, CAPTIONS, [[1, EOS]] * 2)
    return functions, functions.scores(batch)


def test_other_rewards_read_the_captions_without_the_opening():
    own, other, later = Reader("ohwx"), Reader(), Later()
    functions, _ = scores(
        Reward("own", 1.0, own), Reward("other", 1.0, other), Reward("later", 0.0, later)
    )
    assert functions.opening == "ohwx"
    assert own.captions == CAPTIONS
    assert other.captions == later.captions == ["a dog", "a dog"]


def test_a_reward_that_is_only_logged_wants_no_opening():
    own, other = Reader("ohwx"), Reader()
    functions, _ = scores(Reward("own", 0.0, own), Reward("other", 1.0, other))
    assert functions.opening == ""
    assert own.captions == other.captions == CAPTIONS


def test_trigger_and_format_are_judged_side_by_side():
    rewards = [("contains", {"trigger": "ohwx"}), ("format", {}), ("length", {"shortest": 3})]
    _, result = scores(*(Reward(name, 1.0, make(name, given)) for name, given in rewards))
    assert result["contains"] == [1.0, 0.0]
    assert result["format"] == [0.0, 0.0]
    assert result["length"] == [pytest.approx(-1 / 3)] * 2, "the trigger is no word of the caption"


def test_a_scorer_reads_no_opening():
    read = Encoders("embedded:a", torch.device("cpu"), torch.float32)()
    deaf = Encoders("embedded:a", torch.device("cpu"), torch.float32, opening="ohwx")()
    texts = ["ohwx, a red circle", "a red circle"]
    plain, triggered = read.text_features(texts[1:]), deaf.text_features(texts)
    assert torch.allclose(triggered, plain.expand(2, -1), atol=1e-6)
    assert not torch.allclose(read.text_features(texts)[0], plain[0], atol=1e-3)
    fits = next(n for n in range(1, 99) if read.too_long(["a " * (n + 1)])[0])
    assert deaf.too_long(["ohwx, " + "a " * fits]) == [False]
