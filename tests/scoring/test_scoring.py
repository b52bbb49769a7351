"""The adapter between TRL and rewards: groups, gates, async, and what stops a run."""

import asyncio
import math

import pytest
import torch

from rewards import Bank
from rewards.ended import Ended
from vizer_rl.data.sources import ImageFolder
from vizer_rl.errors import ImageError, UserError
from vizer_rl.scoring.contract import RewardError
from vizer_rl.scoring.reward_functions import Reward, RewardFunctions

from ..stubs import EOS


def scoring(score, **attributes):
    for key, value in attributes.items():
        setattr(score, key, value)
    return RewardFunctions([Reward("mine", 1.0, score)], lambda n: None, None, [EOS], 2)


def ask(adapter, ids=((1, EOS), (1, EOS))):
    (function,) = adapter.trl_functions()
    return function(
        completions=[
            [{"role": "assistant", "content": " one"}],
            [{"role": "assistant", "content": "two"}],
        ],
        completion_ids=[list(i) for i in ids],
        image_id=["x", "x"],
        image=[None, None],
        prompts=[],
    )


def test_the_adapter_hands_over_captions_in_groups():
    batches = []

    def score(scored):
        batches.append(scored)
        return [1.0, None]

    assert ask(scoring(score)) == [1.0, None]
    assert batches[0].captions == ["one", "two"]
    assert batches[0].groups == [range(2)]


def test_a_caption_without_end_has_no_score_but_the_gates():
    judge, ended = Reward("mine", 1.0, lambda b: [0.5, None]), Reward("ended", 1.0, Ended())
    adapter = RewardFunctions([judge, ended], lambda n: None, None, [EOS], 2)
    for ids, content, gate in (
        ([[1, 2], [1, 2]], [None, None], [-1.0, -1.0]),
        ([[1, EOS], []], [0.5, None], [0.0, -1.0]),
        ([[1, EOS], [EOS]], [0.5, None], [0.0, 0.0]),
    ):
        batch = adapter.batch(["x"] * 2, [None] * 2, ["one", "two"], ids)
        assert adapter.scores(batch) == {"mine": content, "ended": gate}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([math.nan, 1.0], "nan"),
        ([1.0, math.inf], "inf"),
        ([1.0], "1 scores for 2 captions"),
        (["good", 1.0], "'good'"),
    ],
)
def test_a_broken_reward_stops_the_run_by_name(value, message):
    with pytest.raises(RewardError, match="'mine'") as caught:
        ask(scoring(lambda b: value))
    assert message in str(caught.value)


def test_an_exception_in_a_reward_is_never_a_score():
    def score(scored):
        raise KeyError("oops")

    with pytest.raises(RewardError, match=r"'mine' failed.*'x'.*'one'.*oops"):
        ask(scoring(score))


def several(*rewards):
    """An adapter with (name, weight, function, declared) each."""
    built = []
    for name, weight, score, declared in rewards:
        for key, value in declared.items():
            setattr(score, key, value)
        built.append(Reward(name, weight, score))
    return RewardFunctions(built, lambda n: None, None, [EOS], 2)


def scored(adapter, *captions):
    rows = len(captions)
    return adapter.batch(["x"] * rows, [None] * rows, captions, [[1, EOS]] * rows)


def test_what_the_gate_refuses_no_content_reward_judges_and_guards_are_left_alone():
    adapter = several(
        ("content", 1.0, lambda b: [0.5, 0.5], {}),
        ("guard", 0.5, lambda b: [-0.25, -0.25], {"content": False}),
        ("gate", 0.5, lambda b: [0.0, -1.0], {"gates": True}),
    )
    scores = adapter.scores(scored(adapter, "good", "bad"))
    assert scores == {"content": [0.5, None], "guard": [-0.25, -0.25], "gate": [0.0, -1.0]}
    assert adapter.weighted(scores) == [0.375, -0.625]
    assert adapter.gates_K.tolist() == [False, False, True]
    guard = adapter.scores(scored(adapter, "good", "bad"), adapter.rewards[1:2])
    assert guard == {"guard": [-0.25, -0.25]}, "the others are not scored"
    assert adapter.weighted(guard) == [-0.125, -0.125]
    adapter.rewards[2].weight = 0.0
    logged = adapter.scores(scored(adapter, "good", "bad"))
    assert logged["content"] == [0.5, 0.5], "weight 0: only logged"
    assert logged["gate"] == [0.0, -1.0]
    assert not adapter.gates_K.any()


def test_a_reward_that_is_only_noise_is_told_to_the_constructors_callable():
    sentences = []
    flat = Reward("flat", 1.0, lambda b: [0.5, 0.5])
    adapter = RewardFunctions([flat], lambda n: None, None, [EOS], 2, warn=sentences.append)
    for _ in range(30):
        adapter.step_metrics(torch.full((2, 1), 0.5), "normalize_then_sum", "group")
    (sentence,) = sentences
    assert "reward 'flat' is only noise" in sentence


def test_groups_are_neighbours_of_one_image_up_to_the_number_of_generations():
    adapter = several()
    built = adapter.batch(list("aaaabc"), [None] * 6, list("uvwxyz"), [[EOS]] * 5 + [[]])
    assert built.groups == [range(0, 2), range(2, 4), range(4, 5), range(5, 6)]
    assert built.ended == [True] * 5 + [False]


def test_async_rewards_run_together():
    running, limit = [], []

    async def slow(batch):
        running.append(1)
        limit.append(len(running))
        await asyncio.sleep(0.01)
        running.pop()
        return [1.0] * len(batch.captions)

    class Slow:
        async def __call__(self, batch):
            return await slow(batch)

    adapter = RewardFunctions(
        [Reward("one", 1.0, slow), Reward("two", 1.0, Slow())], lambda n: None, None, [EOS], 2
    )
    for _ in range(2):  # one loop for the whole run
        assert adapter.scores(scored(adapter, "a", "b")) == {"one": [1.0, 1.0], "two": [1.0, 1.0]}
    assert max(limit) == 2


def test_an_async_reward_that_fails_is_named():
    async def broken(batch):
        raise TimeoutError("no answer")

    adapter = several(("remote", 1.0, broken, {}))
    with pytest.raises(RewardError, match=r"'remote' failed.*'a'.*no answer"):
        adapter.scores(scored(adapter, "a", "b"))


def test_a_value_of_the_wrong_type_names_its_caption():
    for value, message in (("0.5", "str"), (0.5, "float"), ({"a": 1}, "dict"), (None, "NoneType")):
        with pytest.raises(RewardError, match=f"'mine' returned {message}"):
            ask(scoring(lambda b, value=value: value))
    with pytest.raises(RewardError, match=r"nan for image 'x', caption 'two'"):
        ask(scoring(lambda b: [1.0, math.nan]))


def test_an_image_that_has_gone_since_the_index_was_made_is_one_sentence(tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    folder = ImageFolder.index(tmp_path)
    (tmp_path / "a.png").unlink()

    class Looks:
        def prepare(self, bank):
            folder.load(bank.image_ids[0])

        def __call__(self, batch):
            return [float(folder.load(i).width) for i in batch.image_ids]

    adapter = RewardFunctions([Reward("looks", 1.0, Looks())], lambda n: None, None, [EOS], 2)
    one = adapter.batch(["a.png"], [None], ["c"], [[EOS]])
    for ask_it in (
        lambda: adapter.prepare(Bank(["a.png"], [None], one, tmp_path)),
        lambda: adapter.scores(one),
    ):
        with pytest.raises(ImageError, match=r"a\.png.*No such file") as caught:
            ask_it()
        assert "\n" not in str(caught.value)


def test_a_refusal_of_our_own_rewards_is_a_sentence_and_a_bug_names_its_line(tmp_path):
    import rewards

    small = rewards.make("self_retrieval", {"hard": 8, "random": 8})
    adapter = RewardFunctions(
        [Reward("self_retrieval", 1.0, small)], lambda n: None, None, [EOS], 2
    )
    one = adapter.batch(["a"], [None], ["c"], [[EOS]])
    with pytest.raises(UserError) as caught:
        adapter.prepare(Bank(["a"] * 9, [None] * 9, one, tmp_path))
    assert str(caught.value) == (
        "reward 'self_retrieval': 9 training images are too few to retrieve one among 16 others: "
        "give 16 to train on, or leave this reward out (rewards.self_retrieval=null)"
    )

    class Broken:
        def prepare(self, bank):
            raise KeyError("oops")

    adapter = RewardFunctions([Reward("mine", 1.0, Broken())], lambda n: None, None, [EOS], 2)
    with pytest.raises(RewardError, match=r"'mine': KeyError: 'oops' \(.*test_scoring.py:\d+\)"):
        adapter.prepare(Bank(["a"], [None], one, tmp_path))


def test_a_sentence_that_a_reward_returns_from_prepare_is_a_warning(tmp_path):
    class Fitted:
        def __init__(self, remark):
            self.remark = remark

        def prepare(self, bank):
            return self.remark

        def __call__(self, batch):
            return [0.0] * len(batch.captions)

    sentences = []
    rewards = [Reward(f"r{n}", 1.0, Fitted(r)) for n, r in enumerate(("fewer", None, 7))]
    adapter = RewardFunctions(rewards, lambda n: None, None, [EOS], 2, warn=sentences.append)
    adapter.prepare(Bank(["a"], [None], adapter.batch(["a"], [None], ["c"], [[EOS]]), tmp_path))
    assert sentences == ["reward 'r0': fewer"]


def test_what_was_measured_is_named_by_reward():
    class Noted:
        def __call__(self, batch):
            return [0.0, 1.0]

        def notes(self):
            return {"cut": 0.25}

    adapter = RewardFunctions([Reward("noted", 1.0, Noted())], lambda n: None, None, [EOS], 2)
    adapter.scores(scored(adapter, "a", "b"))
    measured = adapter.step_metrics(torch.tensor([[0.0], [1.0]]), "normalize_then_sum", "group")
    assert measured.pop("time/reward/noted") >= 0
    assert measured == {"reward/noted/share": 1.0, "reward/noted/cut": 0.25}
