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
from vizer_rl.evaluation.statistics import CorpusMetric, ratio

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


def test_p_values_of_a_corpus_are_of_its_sums():
    def share(doubtful, judged):
        rows_NS = np.stack([doubtful, np.full(len(doubtful), judged)], 1).astype(float)
        return CorpusMetric(rows_NS, ratio)

    few, many = share([0] * 40 + [1] * 10, 4), share([2] * 50, 5)  # .05 and .4
    change = statistics.difference(few, many)
    assert statistics.estimates({"": change})[""]["value"] == pytest.approx(0.05 - 0.4)
    assert statistics.p_value(change) == pytest.approx(2 / (statistics.RESAMPLES + 1))
    assert statistics.p_value(statistics.difference(few, few)) == 1.0
    doubtful = np.array([0, 1] * 30)  # a share whose words are as many in all is a mean
    corpus = statistics.difference(share(doubtful, 1), share(doubtful[::-1].copy(), 1))
    mean = doubtful - doubtful[::-1]
    assert statistics.p_value(corpus) == statistics.p_value(mean.astype(float))


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
    assert better.startswith(
        "Not better throughout than the best control, base: held-out score -.1"
    )
    assert better.count(", worse)") == 2, "held-out score and retrieval"
    assert better.count(", not shown)") == 1, "F1 is the same"
    assert wrong.startswith("Hallucination worse: hallucinated .300, base .100, difference +.200")
    assert length == "Length not within 10%: 4.0 words, the control 10.0 (-60%)."


def under_dial(score, words, doubtful, judged, n=60, **more):
    """Columns of captions of which each has `judged` words, `doubtful` of them, all together."""
    row = columns(score, words, 0.5, n, **more)
    counts_N = np.diff(np.floor(np.linspace(0, doubtful * n, n + 1) + 1e-9))  # whole words
    rows_NS = np.stack([counts_N, np.full(n, float(judged))], 1)
    return row | {"doubtful_words": CorpusMetric(rows_NS, ratio)}


FACTS = {"fact_f1": 0.5, "hallucination_rate": 0.4}
BESIDE = {
    "base": under_dial(0.6, 6.0, 2, 4, **FACTS),  # .5 of its words
    "best_prompt": under_dial(0.7, 6.0, 1, 4, **FACTS),  # .25
    "best_of_8": under_dial(0.65, 7.0, 1, 5, **FACTS),  # .2
    "length_matched": under_dial(0.4, 2.0, 0, 1, **FACTS),  # none, of a quarter of the base's
}
BETTER = {"fact_f1": 0.6, "hallucination_rate": 0.2}


def test_under_a_dial_fewer_doubtful_words_are_better_and_a_cosine_is_not_asked():
    rows = BESIDE | {"trained": under_dial(0.3, 5.0, 0.3, 3, **BETTER)}
    verdict = against_controls(rows, dial=True)["verdict"]
    assert (verdict["by"], verdict["better"]) == ("doubtful_words", True)
    assert {test["control"] for test in verdict["tests"]} == {"best_of_8"}
    differences = {test["metric"]: test["difference"]["value"] for test in verdict["tests"]}
    assert differences == {
        "doubtful_words": pytest.approx(0.1 - 0.2),
        "fact_f1": pytest.approx(0.1),
        "hallucination_rate": pytest.approx(-0.2),
    }
    p = 2 / (statistics.RESAMPLES + 1)
    assert [test["p_holm"] for test in verdict["tests"]] == [pytest.approx(3 * p)] * 3
    better, wrong, enough = verdict["sentences"]
    begin = "Better than the best control by doubtful words, best of 8: doubtful words -.100 ["
    assert better.startswith(begin)
    assert wrong.startswith("Hallucination not shown to be worse: hallucinated .200, best of 8 .4")
    assert enough == (
        "Says enough: 3.0 words of a caption could be others, of the control's 5.0 (-40%; from "
        "-50% on it is enough); in all 5.0 words, the control 7.0 (-29%)."
    )


def test_without_a_dial_the_same_captions_lose_by_their_cosine():
    rows = BESIDE | {"trained": under_dial(0.3, 5.0, 0.3, 3, **BETTER)}
    verdict = against_controls(rows)["verdict"]
    assert (verdict["by"], verdict["better"]) == ("heldout_score", False)
    tests = {test["metric"]: test["better"] for test in verdict["tests"]}
    assert tests == {"heldout_score": False, "retrieval_1": False, "fact_f1": True}
    assert {test["control"] for test in verdict["tests"]} == {"best_prompt"}
    assert verdict["sentences"][2].startswith("Length not within 10%: 5.0 words, the control 6.0")


@pytest.mark.parametrize(("judged", "enough"), [(2.5, True), (2.4, False)])
def test_who_says_next_to_nothing_does_not_win_by_it(judged, enough):
    rows = BESIDE | {"trained": under_dial(0.3, 2.0, 0, judged, **BETTER)}
    verdict = against_controls(rows, dial=True)["verdict"]
    assert [test["better"] for test in verdict["tests"]] == [enough, True, enough]
    assert verdict["better"] == enough
    begin = "Says enough: " if enough else "Says too little for less that is wrong to count: "
    assert verdict["sentences"][2].startswith(begin)
    assert "of the control's 5.0" in verdict["sentences"][2]


@pytest.mark.parametrize(
    ("doubtful", "facts", "wrong"),
    [
        (2.0, BETTER, "doubtful_words"),
        (0.3, BETTER | {"hallucination_rate": 0.5}, "hallucination_rate"),
        (0.3, BETTER | {"fact_f1": 0.4}, "fact_f1"),
    ],
)
def test_under_a_dial_a_change_the_wrong_way_is_not_better(doubtful, facts, wrong):
    rows = BESIDE | {"trained": under_dial(0.9, 6.0, doubtful, 4, **facts)}
    verdict = against_controls(rows, dial=True)["verdict"]
    tests = {test["metric"]: test["better"] for test in verdict["tests"]}
    assert [metric for metric, better in tests.items() if not better] == [wrong]
    assert verdict["sentences"][0].startswith("Not better throughout than the best control by doub")
    worse = verdict["sentences"][1].startswith("Hallucination worse")
    assert worse == (wrong == "hallucination_rate")


def test_under_a_dial_photos_have_their_doubtful_words_alone():
    rows = {row: dict(own) for row, own in BESIDE.items()}
    rows["trained"] = under_dial(0.3, 5.0, 0.3, 3)
    for row in rows.values():
        for metric in FACTS:
            row.pop(metric, None)
    verdict = against_controls(rows, dial=True)["verdict"]
    assert [test["metric"] for test in verdict["tests"]] == ["doubtful_words"]
    assert verdict["better"]
    for row in rows.values():
        row.pop("doubtful_words")  # no held-out scorer
    assert "verdict" not in against_controls(rows, dial=True)
