"""Metrics without labels, doubtful words and the verdict over controls, worked out by hand."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from rewards.lib.lexicon import Lexicon
from rewards.lib.word_classes import WordClasses
from vizer_rl.evaluation import label_free, statistics
from vizer_rl.evaluation.against_controls import against_controls
from vizer_rl.evaluation.doubtful_words import doubtful_words, marked

CAPTIONS = ["a red circle", "a blue circle", "a red square", "a blue square"]


class Colours:
    """A scorer that sees colours: red along the first axis, blue along the second."""

    def text_features(self, captions):
        return normalize(
            torch.tensor([[float("red" in c), float("blue" in c), 0.1] for c in captions]), dim=1
        )


def test_a_word_is_doubtful_where_another_of_its_class_fits_better():
    images = torch.eye(3)[[0, 0, 1, 1]]  # red, red, blue, blue
    classes = WordClasses(Lexicon.learn(CAPTIONS))
    doubtful = doubtful_words(Colours(), images, CAPTIONS, classes)
    blue = {"start": 2, "end": 6, "word": "blue", "instead": "red"}
    red = {"start": 2, "end": 5, "word": "red", "instead": "blue"}
    assert doubtful == [[], [blue], [red], []]  # shapes are all one to this scorer: a tie is none
    assert marked(CAPTIONS[1], doubtful[1]) == "a *blue* circle"
    assert marked("a b c", [{"start": 0, "end": 1}, {"start": 4, "end": 5}]) == "*a* b *c*"


def test_white_space_makes_no_doubt():
    (doubtful,) = doubtful_words(
        Colours(), torch.eye(3)[:1], ["a  red\ncircle"], WordClasses(Lexicon.learn(CAPTIONS))
    )
    assert doubtful == []


def test_retrieval_is_among_the_nearest_images_alone(monkeypatch):
    monkeypatch.setattr(label_free, "NEGATIVES", 1)
    images = normalize(torch.tensor([[1.0, 0], [1, 0.2], [0, 1], [0.2, 1]]), dim=1)
    captions = images[[0, 0, 3, 3]]  # the second fits the first image, its nearest, better
    assert label_free.retrieval_ranks(images, captions).tolist() == [1, 2, 2, 1]
    captions = images[[2, 1, 2, 3]]  # the first fits far images better: they are not asked
    assert label_free.retrieval_ranks(images, captions).tolist() == [2, 1, 1, 1]
    monkeypatch.setattr(label_free, "NEGATIVES", 31)
    assert label_free.retrieval_ranks(images, captions).tolist() == [4, 1, 1, 1]


def test_diversity_by_hand():
    assert label_free.diversity(["A red circle.", "a red circle", "a star"]) == {
        "distinct_2": 3 / 5,
        "vocabulary": 4,
        "unique_captions": 1.0,
    }
    assert label_free.diversity(["", ""]) == {
        "distinct_2": 0.0,
        "vocabulary": 0,
        "unique_captions": 0.5,
    }


def test_what_the_image_adds_to_content_words():
    class Policy:
        def tokens(self, caption):
            return [f" {word}" for word in caption.split()]

        def log_probs(self, captions, images, view):
            own = {"image": {"a": -1.0, "red": -0.5, "dog": -1.0}, "blank": {}}[view]
            return [torch.tensor([own.get(w, -2.0) for w in c.split()]) for c in captions]

    nats = label_free.visual_dependence(Policy(), ["a red dog", "a", ""], [None] * 3)
    assert nats == [pytest.approx((1.5 + 1.0) / 2), 0.0, 0.0]


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03]) == [pytest.approx(p) for p in (0.03, 0.06, 0.06)]
    assert statistics.holm([0.6, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_p_values_of_the_paired_bootstrap():
    rng = np.random.default_rng(0)
    assert statistics.p_value(np.full(50, 0.1)) == pytest.approx(2 / (statistics.RESAMPLES + 1))
    assert statistics.p_value(np.zeros(50)) == 1.0
    noise = rng.normal(0.2, 1, 100)  # its z is about 2: a p of the order of .05
    exact = 2 * 0.5 * (1 - torch.erf(torch.tensor(noise.mean() / noise.std() * 10 / 2**0.5)))
    assert statistics.p_value(noise) == pytest.approx(float(exact), abs=0.02)


def columns(score, words, wrong, n=60, **more):
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.001, n)
    row = {"mean_length": np.full(n, words), "heldout_score": score + noise}
    row |= {"retrieval_1": np.full(n, score), "doubtful_rate": np.full(n, wrong)}
    return row | {name: np.full(n, value) for name, value in more.items()}


def test_the_verdict_is_against_the_control_that_the_heldout_score_likes_best():
    rows = {
        "base": columns(0.3, 5.0, 0.4),
        "trained": columns(0.6, 10.0, 0.2),
        "best_prompt": columns(0.4, 6.0, 0.3),
        "best_of_8": columns(0.5, 9.5, 0.2),
    }
    result = against_controls(rows)
    assert list(result) == ["controls", "over_controls", "verdict"]
    assert result["over_controls"]["best_prompt"]["mean_length"]["value"] == 4.0
    verdict = result["verdict"]
    assert verdict["better"]
    assert [t["metric"] for t in verdict["tests"]] == ["heldout_score", "retrieval_1"]
    assert all(t["p_holm"] == pytest.approx(2 * t["p"]) for t in verdict["tests"])
    better, wrong, length = verdict["sentences"]
    assert better.startswith("Better than the best control, best of 8: held-out score +.100 [")
    assert wrong.startswith("Hallucination not shown to be worse: doubtful .200, best of 8 .200,")
    assert length == "Length within 10%: 10.0 words, the control 9.5 (+5%)."


def test_a_verdict_against_the_trained():
    facts = {"fact_f1": 0.5, "hallucination_rate": 0.1}
    rows = {
        "base": columns(0.7, 10.0, 0.0, **facts),
        "trained": columns(0.6, 4.0, 0.0, **(facts | {"hallucination_rate": 0.3})),
        "best_of_8": columns(0.5, 9.5, 0.0, **facts),
    }
    verdict = against_controls(rows)["verdict"]
    assert not verdict["better"]
    assert [t["better"] for t in verdict["tests"]] == [False] * 3
    assert {t["control"] for t in verdict["tests"]} == {"base"}  # the best of them all
    better, wrong, length = verdict["sentences"]
    assert better.startswith("Not better throughout than the best control, base: ")
    assert wrong.startswith("Hallucination worse: hallucinated .300, base .100, difference +.200")
    assert length == "Length not within 10%: 4.0 words, the control 10.0 (-60%)."
