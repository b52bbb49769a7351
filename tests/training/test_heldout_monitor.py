"""The held-out monitor's score: whole captions, sentence by sentence."""

import json
import re
from types import SimpleNamespace

import pytest

from rewards.lib.word_classes import Place
from vizer_rl.policy import captioner
from vizer_rl.training import heldout_monitor
from vizer_rl.training.heldout_monitor import HeldoutMonitor, is_due

from ..stubs import Stub

NONE = SimpleNamespace(places=lambda caption: [])  # classes that no word is of


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
    scorer, results = Stub({name: [1.0, 0.0] for name in "vwxyz"}, texts), []
    dogs = iter([[0, 1, 2, 3], [1], [0, 2, 4]])
    captions = (["a dog." if i in right else "a cat." for i in range(5)] for right in dogs)
    monkeypatch.setattr(
        captioner, "caption", lambda *_, **__: [SimpleNamespace(text=c) for c in next(captions)]
    )
    ids, images, log = [*"vwxyz"], [None] * 5, lambda name, value: None
    monitor = HeldoutMonitor(
        *(ids, images, "", 8, scorer, NONE, None, 10, "best", tmp_path, None, log),
        on_evaluation=[results.append],
    )
    assert monitor.evaluate(Model()) == pytest.approx(0.8)
    for step in (20, 25, 30):
        state = SimpleNamespace(global_step=step, max_steps=100, is_world_process_zero=True)
        monitor.on_step_end(None, state, None, model=Model())
    assert [result.step for result in results] == [0, 20, 30]
    assert [result.kept for result in results] == [True, False, True]
    assert [result.score for result in results] == pytest.approx([0.8, 0.2, 0.6])
    assert results[0].ids == tuple("vwxyz")
    assert results[0].captions == ("a dog.",) * 4 + ("a cat.",)
    assert results[0].cosines_N.tolist() == [1.0] * 4 + [0.0]


@pytest.mark.parametrize(
    ("interval", "due"),
    [
        (0, [31]),
        (1, [*range(1, 32)]),
        (10, [5, 10, 15, 20, 30, 31]),
        (15, [7, 15, 22, 30, 31]),
        (50, [25, 31]),
    ],
)
def test_evaluations_are_twice_as_frequent_over_the_first_two_intervals(interval, due):
    states = [SimpleNamespace(global_step=step, max_steps=31) for step in range(1, 32)]
    assert [s.global_step for s in states if is_due(s, interval)] == due


class Classes:
    """Where red stands blue could, and the other way round."""

    def places(self, caption):
        found = [(m, "blue" if m[0] == "red" else "red") for m in re.finditer("red|blue", caption)]
        texts = [f"{caption[: m.start()]}{other}{caption[m.end() :]}" for m, other in found]
        pairs = zip(found, texts, strict=True)
        return [Place(*m.span(), m[0], (other,), (text,), ()) for (m, other), text in pairs]


def test_who_says_less_and_less_that_is_doubtful_is_kept(tmp_path, monkeypatch):
    said, less = "a red dog and a red cat", "a dog and a blue cat"
    fits = {said: 0.8, "a blue dog and a red cat": 0.9, "a red dog and a blue cat": 0.7}
    fits |= {less: 0.5, "a dog and a red cat": 0.4}
    vectors = {text: [fit, (1 - fit**2) ** 0.5] for text, fit in fits.items()}
    scorer = Stub({"x": [1.0, 0.0], "y": [1.0, 0.0]}, vectors)
    turn = iter([said, less, said, said])
    monkeypatch.setattr(
        captioner, "caption", lambda *_, **__: [SimpleNamespace(text=next(turn))] * 2
    )
    results, metrics = [], []
    monitor = HeldoutMonitor(
        *(["x", "y"], [None] * 2, "", 8, scorer, Classes(), None, 10, "best", tmp_path, None),
        lambda name, value: metrics.append((name, value)),
        on_evaluation=[results.append],
    )
    for step in (0, 10, 20):
        monitor.evaluate(Model(), step)
    scores = results[0].scores
    assert [[*x.values()] for x in (scores.doubtful, scores.judged)] == [[1, 1], [2, 2]]
    assert [value for name, value in metrics if name == "heldout/doubtful"] == [0.5, 0.0, 0.5]
    assert [result.score for result in results] == pytest.approx([0.8, 0.5, 0.8])
    assert [result.kept for result in results] == [True, True, True]
    monkeypatch.setattr(heldout_monitor, "DOUBTED", 1)  # the others' words are not exchanged
    monitor.evaluate(Model(), 30)
    scores = results[3].scores
    assert [[*x.values()] for x in (scores.doubtful, scores.judged)] == [[1, 0], [2, 0]]


def test_the_monitors_score_reads_a_caption_to_its_end(tmp_path, monkeypatch):
    start = "a dog sits on the green grass."
    texts = {start: [1.0, 0.0], "a cat is up there.": [0.0, 1.0]}
    scorer, metrics = Stub({"x": [1.0, 0.0]}, texts), {}
    monkeypatch.setattr(
        captioner, "caption", lambda *_, **__: [SimpleNamespace(text=" ".join(texts))]
    )
    monitor = HeldoutMonitor(
        ["x"], [None], "", 8, scorer, NONE, None, 1, "best", tmp_path, None, metrics.__setitem__
    )
    assert monitor.evaluate(Model()) == pytest.approx(7 / 12)
    assert metrics == {"heldout/score": pytest.approx(7 / 12), "heldout/words": 12}
    best = {"cosines": {"x": pytest.approx(7 / 12)}, "doubtful": {"x": 0}, "judged": {"x": 0}}
    assert monitor.state_dict() == {"best": best}
    assert json.loads((tmp_path / "heldout.json").read_text()).keys() == {"score"}
