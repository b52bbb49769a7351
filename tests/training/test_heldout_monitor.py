"""The held-out monitor's score: whole captions, sentence by sentence."""

import json
from types import SimpleNamespace

import pytest

from vizer_rl.policy import captioner
from vizer_rl.training.heldout_monitor import HeldoutMonitor

from ..stubs import Stub


class Model:
    """Stands for the policy."""

    training = True

    def eval(self):
        pass

    def train(self, mode):
        pass

    def save_pretrained(self, folder, selected_adapters):
        assert selected_adapters == ["default"]


def test_the_monitors_score_reads_a_caption_to_its_end(tmp_path, monkeypatch):
    start = "a dog sits on the green grass."
    texts = {start: [1.0, 0.0], "a cat is up there.": [0.0, 1.0]}
    scorer, metrics = Stub({"x": [1.0, 0.0]}, texts), {}
    monkeypatch.setattr(
        captioner, "caption", lambda *_, **__: [SimpleNamespace(text=" ".join(texts))]
    )
    monitor = HeldoutMonitor(
        ["x"], [None], "", 8, scorer, None, 1, "best", tmp_path, None, metrics.__setitem__
    )
    assert monitor.evaluate(Model()) == pytest.approx(7 / 12)
    assert metrics == {"heldout/score": pytest.approx(7 / 12), "heldout/words": 12}
    assert monitor.state_dict() == {"best": pytest.approx(7 / 12)}
    assert json.loads((tmp_path / "heldout.json").read_text()).keys() == {"score"}
