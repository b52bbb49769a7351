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

    def save_pretrained(self, folder, selected_adapters, state_dict):
        assert selected_adapters == ["default"]


def test_each_evaluation_is_handed_on_with_its_step_captions_and_scores(tmp_path, monkeypatch):
    texts = {"a dog.": [1.0, 0.0], "a cat.": [0.0, 1.0]}
    scorer, results = Stub({"x": [1.0, 0.0], "y": [1.0, 0.0]}, texts), []
    captions = iter([["a dog.", "a cat."], ["a cat.", "a cat."], ["a dog.", "a dog."]])
    monkeypatch.setattr(
        captioner, "caption", lambda *_, **__: [SimpleNamespace(text=c) for c in next(captions)]
    )
    ids, images, log = ["x", "y"], [None, None], lambda name, value: None
    monitor = HeldoutMonitor(
        *(ids, images, "", 8, scorer, None, 10, "best", tmp_path, None, log),
        on_evaluation=[results.append],
    )
    assert monitor.evaluate(Model()) == 0.5
    for step in (10, 15, 20):
        state = SimpleNamespace(global_step=step, max_steps=100, is_world_process_zero=True)
        monitor.on_step_end(None, state, None, model=Model())
    assert [result.step for result in results] == [0, 10, 20]
    assert [result.kept for result in results] == [True, False, True]
    assert [result.score for result in results] == [0.5, 0.0, 1.0]
    assert results[0].ids == ("x", "y")
    assert results[0].captions == ("a dog.", "a cat.")
    assert results[0].cosines_N.tolist() == [1.0, 0.0]


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
