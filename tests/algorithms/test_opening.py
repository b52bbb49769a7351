"""An opening put in front of completions: whose it is, what it does to advantages, by hand."""

from collections import deque
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from vizer_rl.algorithms import grpo
from vizer_rl.algorithms.grpo import GRPO
from vizer_rl.algorithms.opening import finish_opening, with_opening
from vizer_rl.algorithms.resumable import Resumable
from vizer_rl.algorithms.vizer import ViZer
from vizer_rl.policy.shared_prefix.rollout import Rollout

END = 9
WORDS = {"tok,": [4, 5], "tok, a dog": [4, 5, 6, 7], "tok, a": [4, 5, 6]}
TEXTS = {(6, 7, END): " a dog", (6,): "a", (END,): "", (3, 2, 6, 7, END): "tok, a dog"}


class Trainer(SimpleNamespace):
    """What the functions read of one, and what they log."""

    def log_metric(self, name, value):
        self.logged = {name: value}


def trainer(rollout, opening="tok,", logged=(), takes_opening=True):
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: TEXTS[tuple(ids)])
    functions = SimpleNamespace(
        opening=opening, eos_ids={END}, policy=SimpleNamespace(token_ids=WORDS.__getitem__)
    )
    return Trainer(
        rollout=rollout,
        takes_opening=takes_opening,
        accelerator=SimpleNamespace(gather=lambda tensor: tensor),
        _logs={"advantages": deque([7.0, *logged])},  # 7: of the rollout before
        reward_functions=functions,
        processing_class=SimpleNamespace(tokenizer=tokenizer),
    )


def test_it_is_put_in_front_of_those_that_lack_it_whose_end_stays():
    rollout = Rollout([])
    mine = trainer(rollout)
    completions = [[6, 7, END], [4, 5, 6, 7, END], [6], [END]]  # the third came to no end
    assert with_opening(mine, rollout, completions) == [
        [4, 5, 6, 7, END],
        [4, 5, 6, 7, END],
        [4, 5, 6],
        [4, 5, END],
    ]
    assert rollout.own_opening.tolist() == [False, True, False, False]
    assert rollout.opening_tokens == 2
    assert mine.logged == {"completions/own_opening": 0.25}


def test_one_that_is_there_in_other_tokens_is_not_put_in_front_twice():
    rollout = Rollout([])
    assert with_opening(trainer(rollout), rollout, [[3, 2, 6, 7, END]]) == [[4, 5, 6, 7, END]]
    assert rollout.own_opening.tolist() == [False]


@pytest.mark.parametrize("more", [{"opening": ""}, {"takes_opening": ViZer.takes_opening}])
def test_without_an_opening_nothing_changes(more):
    rollout, output = Rollout([]), {"advantages": torch.tensor([1.0, -1.0])}
    mine = trainer(rollout, **more)
    assert with_opening(mine, rollout, [[6, END]]) == [[6, END]]
    finish_opening(mine, output)
    assert output["advantages"].tolist() == [1.0, -1.0]
    assert rollout.own_opening is None


@pytest.mark.parametrize(
    ("advantages", "expected", "logged"),
    [
        ([1.0, -1.0, 2.0, -2.0], [1.0, 0.0, 2.0, -2.0], [1.0, 0.0, 2.0, -2.0]),
        (
            [[1.0, -1.0]] * 4,
            [[1.0, 0.0], [1.0, 0.0], [1.0, -1.0], [1.0, -1.0]],
            [0.5, 1.0, 0.0, 1.0],  # of two tokens, or of the first alone
        ),
    ],
    ids=["of captions", "of tokens"],
)
def test_what_is_not_the_policys_own_is_never_pushed_down(advantages, expected, logged):
    rollout = Rollout([])
    rollout.keep_opening(2, [False, False, True, True])
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 0]])
    output = {"advantages": torch.tensor(advantages), "value_mask": mask}
    mine = trainer(rollout, logged=[1.0, -1.0, 2.0, -2.0])
    finish_opening(mine, output)
    assert output["advantages"].tolist() == expected
    assert [*mine._logs["advantages"]] == [7.0, *logged], "the table shows what trains"


def test_the_reference_is_finished_first_and_all_of_it_has_whole_weights(monkeypatch):
    """Under FSDP2 a question outside would wait for ever for processes that ask another one."""
    steps = []

    @contextmanager
    def whole_weights(model):
        steps.append("whole")
        yield
        steps.append("spread")

    def step(name, result=None):
        return lambda *_: steps.append(name) or result

    monkeypatch.setattr(grpo, "whole_weights", whole_weights)
    monkeypatch.setattr(grpo, "finish_reference", step("reference"))
    monkeypatch.setattr(grpo, "finish_opening", step("opening"))
    monkeypatch.setattr(Resumable, "_generate_and_score_completions", step("sample", {}))
    mine = GRPO.__new__(GRPO)
    mine.model = mine.vision_cache = mine.rewards_NK = None
    mine.timer, mine._logs = lambda name: nullcontext(), {"advantages": deque()}
    mine.alignment = SimpleNamespace(row_features=step("features"))
    mine.last_rollout = SimpleNamespace(judged=step("judged"))
    mine.finish_rollout = step("rollout")
    mine._generate_and_score_completions([])
    inside = ["sample", "features", "reference", "rollout", "opening"]
    assert steps == ["whole", *inside, "spread", "judged"]
