"""What training held is free before the evaluation loads a policy of its own."""

import weakref

import pytest

from vizer_rl.algorithms.grpo import GRPO
from vizer_rl.training import train


@pytest.mark.parametrize(
    "more",
    [
        (),
        pytest.param(("engine.shared_prefix=off", "monitor.audit=true"), marks=pytest.mark.slow),
    ],
)
def test_policy_trainer_and_scorers_are_gone_when_the_evaluation_starts(more, command, monkeypatch):
    references, alive = {}, []
    original = GRPO.train

    def spy(self, *args, **kwargs):
        encoders = self.reward_functions.encoders
        references.update(
            model=weakref.ref(self.model.get_base_model()),
            trainer=weakref.ref(self),
            scorer=weakref.ref(encoders().model),
            heldout=weakref.ref(encoders("embedded:b").model),
        )
        return original(self, *args, **kwargs)

    def evaluate(directory, **_):
        alive.append([name for name, reference in references.items() if reference() is not None])

    monkeypatch.setattr(GRPO, "train", spy)
    monkeypatch.setattr(train.evaluate, "evaluate", evaluate)
    command("smolvlm", "freed", *more)
    assert len(references) == 4
    assert alive == [[]]
