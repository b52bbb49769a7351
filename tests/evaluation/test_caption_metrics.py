"""Caption metrics with references, worked out by hand, and coco-caption's own numbers."""

import json
import math
import os
import stat

import numpy as np
import pytest
import torch

from vizer_rl.errors import UserError
from vizer_rl.evaluation.metrics import clip_score, java_metrics
from vizer_rl.evaluation.metrics.bleu import Bleu
from vizer_rl.evaluation.metrics.chair import Chair
from vizer_rl.evaluation.metrics.cider import CiderD
from vizer_rl.evaluation.metrics.coco_objects import CLASSES, mentions, plural
from vizer_rl.evaluation.metrics.ptb import tokenize
from vizer_rl.evaluation.metrics.retrieval import recalls
from vizer_rl.evaluation.metrics.rouge_l import lcs, rouge_l
from vizer_rl.evaluation.statistics import CorpusMetric, difference, estimates

from ..conftest import FIXTURES

EXAMPLES = FIXTURES / "caption_metrics"


def value(column):
    return estimates({"": column})[""]["value"]


def words(*texts):
    return [text.split() for text in texts]


# What CoreNLP 3.4.1 (the jar of coco-caption) makes of each, without coco-caption's punctuation.
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A man's dog isn't here, it's the dogs'.", "a man 's dog is n't here it 's the dogs"),
        ("They cannot go; she's gonna run", "they can not go she 's gon na run"),
        ("A black-and-white cat -- on a t-shirt.", "a black-and-white cat on a t-shirt"),
        ("A red/white/blue flag and/or a 1/2 pie.", "a red/white/blue flag and/or a 1/2 pie"),
        ("The clock reads 10:30 a.m. on the wall.", "the clock reads 10:30 a.m. on the wall"),
        ("St. Louis, Main St.", "st. louis main st."),
        ("A (small) dog [brown]", "a -lrb- small -rrb- dog -lsb- brown -rsb-"),
        ('"A quote" and \'single quote\'', "a quote and single quote"),
        ("#1 & 2nd $5.00 100% 1,000", "# 1 & 2nd $ 5.00 100 % 1,000"),
        ("A b&w photo of AT&T", "a b & w photo of at&t"),
        ("Mr. Smith vs. the U.S. team.", "mr. smith vs. the u.s. team"),
        ("rides...a wave ... ..", "rides a wave"),
        ("two dogs.Three dogs,cats !!", "two dogs.three dogs cats !!"),
        ("o'clock 'til 'n' roll, '50s and 1990's", "o'clock 'til 'n' roll '50s and 1990 's"),
        ("No. 5 and no. A mass. in Mass. of", "no. 5 and no a mass in mass. of"),
        ("“curly” it’s — café ½ £5", "curly it 's café 1/2 # 5"),
        ("a cat, lb., and etc.", "a cat lb. and etc."),
        ("www.example.com foo@bar.com #tag @name", "www.example.com foo@bar.com #tag @name"),
        ("ma'am, 6ft 3D 4x4 2-story -5", "ma'am 6ft 3d 4x4 2-story -5"),
        ("", ""),
    ],
)  # fmt: skip
def test_tokens_are_core_nlps(text, tokens):
    assert tokenize(text) == tokens.split()


def test_bleu_by_hand():
    # "a a a b c" against "a b" and "a a d e f": a is clipped at 2, b counts, c does not: 3 of 5;
    # of the bigrams aa (1 of 2) and ab: 2 of 4; of the trigrams none. The closest length is 5.
    metrics = Bleu([words("a b", "a a d e f")])(words("a a a b c"))
    assert value(metrics["bleu_1"]) == pytest.approx(3 / 5)
    assert value(metrics["bleu_2"]) == pytest.approx(math.sqrt(3 / 5 * 2 / 4))
    assert value(metrics["bleu_3"]) < 1e-4
    # Sums over the corpus, not a mean: 3 + 1 of 5 + 1. Lengths 6 against 5 + 3: brevity e^(1-8/6).
    metrics = Bleu([words("a b", "a a d e f"), words("x y z")])(words("a a a b c", "x"))
    assert value(metrics["bleu_1"]) == pytest.approx(4 / 6 * math.exp(1 - 8 / 6))
    # Of two references equally near the shorter one counts: 3, so no brevity penalty.
    assert value(Bleu([words("a b c d e", "a b c")])(words("a b c d"))["bleu_1"]) == pytest.approx(
        1
    )
    assert value(Bleu([words("a b")])([[]])["bleu_1"]) == 0


def test_rouge_l_by_hand():
    # Precision 2/3 of the first, recall 2/2 of the second: (1 + 1.44) · 2/3 / (1 + 1.44 · 2/3).
    score = rouge_l(words("a b c"), [words("a x b y", "b c")])
    assert score == pytest.approx([2.44 * (2 / 3) / (1 + 1.44 * 2 / 3)])
    assert rouge_l([[], *words("q")], [words("a"), words("a")]).tolist() == [0, 0]


def test_longest_common_subsequence_is_the_tables():
    rng = np.random.default_rng(0)
    for _ in range(100):
        a, b = (list(rng.integers(0, 4, rng.integers(0, 12)).astype(str)) for _ in range(2))
        table = np.zeros((len(a) + 1, len(b) + 1), int)
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                step = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
                table[i + 1, j + 1] = step
        assert lcs(a, b) == table[-1, -1]


def test_cider_d_by_hand():
    # Two images; "a" is in both, so it weighs log 2/2 = 0, every other n-gram log 2.
    cider = CiderD([words("a b"), words("a c")])
    # Unigram b: cosine 1; bigram ab: 1; no longer ones: 10 · 2/4.
    assert cider(words("a b", "a c")) == pytest.approx([5, 5])
    # "b b": its count 2 is clipped to the reference's 1: 1 · 1 / (2 · 1); no bigram in common.
    assert cider(words("b b", "x"))[0] == pytest.approx(10 * (1 / 2) / 4)
    # "b" has one bigram fewer than its reference: e^(-1/72).
    assert cider(words("b", "x")) == pytest.approx([10 / 4 * math.exp(-1 / 72), 0])


def test_document_frequencies_count_an_image_once():
    cider = CiderD([words("b", "b q"), words("c"), words("d")])
    assert cider.frequency["b",] == 1
    assert cider.frequency["b", "q"] == 1


@pytest.mark.parametrize(
    ("file", "bleu", "rouge", "cider"),
    [
        ("good", [0.6667, 0.4899, 0.3469, 0], 0.4280, 0.5637),
        ("bad", [0.4815, 0.2404, 0.1359, 0], 0.3121, 0.2790),
    ],
)
def test_coco_captions_numbers(file, bleu, rouge, cider):
    if not EXAMPLES.is_dir():
        pytest.skip("coco-caption's examples are not here (shared/fixtures/caption_metrics)")
    references = json.loads((EXAMPLES / "refs.json").read_text())
    captions = json.loads((EXAMPLES / f"{file}_captions.json").read_text())
    tokens = [[tokenize(text) for text in references[name]] for name in captions]
    own = [tokenize(text) for text in captions.values()]
    scores = [value(column) for column in Bleu(tokens)(own).values()]
    assert scores == pytest.approx(bleu, abs=5e-5)
    assert rouge_l(own, tokens).mean() == pytest.approx(rouge, abs=5e-5)
    assert CiderD(tokens)(own).mean() == pytest.approx(cider, abs=5e-5)


class Words:
    """A scorer whose vectors of texts are given: each word has an axis."""

    def __init__(self, **vectors):
        self.vectors, self.texts = vectors, []

    def text_features(self, captions):
        self.texts += captions
        return torch.tensor([self.vectors[caption.split()[-1]] for caption in captions])


def test_clip_score_and_ref_clip_score_by_hand():
    scorer = Words(near=[0.6, 0.8], far=[-1.0, 0.0], mid=[0.8, 0.6], ref=[0.0, 1.0])
    images = torch.tensor([[1.0, 0.0]] * 3)
    vectors = clip_score.caption_vectors(scorer, ["near", "far", "mid"])
    assert scorer.texts[0] == "A photo depicts near"
    scores = clip_score.clip_score(images, vectors)
    assert scores == pytest.approx([2.5 * 0.6, 0, 2.5 * 0.8])
    metric = clip_score.RefClipScore(scorer, [["ref", "far"], ["near"], ["mid", "ref"]])
    # Nearest reference .8 of ref; 0; 1 of itself: harmonic means of 1.5 and .8, 2 and 1.
    assert metric(scores, vectors) == pytest.approx([2 * 1.5 * 0.8 / 2.3, 0, 2 * 2 / 3])


def test_recall_by_hand_and_equal_images_share():
    captions = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = recalls(captions, images)
    # Caption 0 has two equal images first; caption 1 has image 2 before two equal ones.
    assert found["recall_1"].tolist() == [0.5, 0, 1]
    assert found["recall_5"].tolist() == [1, 1, 1]


def test_every_class_of_coco_is_named_by_its_name_and_plural():
    assert len(CLASSES) == len(set(CLASSES)) == 80
    for label in CLASSES:
        *first, last = label.split()
        text = f"there is an {label} on it" if label == "orange" else f"the {label} here"
        assert mentions(text) == [label]
        assert mentions(" ".join(["two", *first, plural(last)])) == [label]


@pytest.mark.parametrize(
    ("caption", "classes"),
    [
        ("Two men and a woman riding horses", ["person", "person", "horse"]),
        ("A hot dog next to a dog", ["hot dog", "dog"]),
        ("a hot-dog", ["hot dog"]),
        ("a teddy bear, a baby elephant and a baby", ["teddy bear", "elephant", "person"]),
        ("a train on a train track at a train station", ["train"]),
        ("a baseball bat, a baseball game and a baseball player", ["baseball bat", "person"]),
        ("geese, mice, knives, children, puppies", ["bird", "mouse", "knife", "person", "dog"]),
        ("an orange cat, an orange and white cat, and a cat that is orange", ["cat"] * 3),
        ("an orange on a plate of oranges", ["orange", "orange"]),
        ("a man's tie in the dog house", ["person", "tie"]),
        ("wine glasses, cell phones and a tv set", ["wine glass", "cell phone", "tv"]),
        ("nothing here", []),
    ],
)  # fmt: skip
def test_mentions_by_hand(caption, classes):
    assert mentions(caption) == classes


def test_chair_by_hand():
    # Image 0 holds a dog, and by its reference a person; image 1 a cat and a bed; 2 a car.
    references = [["a man with a pet"], [], []]
    metric = Chair([{"dog"}, {"cat", "bed"}, {"car"}], references)
    scores = metric(["a man, a dog and another dog", "a dog, a cat and a bus", "nothing"])
    assert value(scores["chair_i"]) == pytest.approx(2 / 6)
    assert scores["chair_s"].tolist() == [0, 1, 0]
    assert value(scores["object_recall"]) == pytest.approx((2 + 1 + 0) / (2 + 2 + 1))
    assert value(Chair([set()])(["nothing"])["chair_i"]) == 0


def test_corpus_metrics_are_resampled_as_sums_and_compared_paired():
    rng = np.random.default_rng(1)
    rows = rng.integers(1, 9, (200, 2)).astype(float)

    def ratio(sums):
        return sums[..., 0] / sums[..., 1]

    one, other = CorpusMetric(rows, ratio), CorpusMetric(rows * [1.1, 1], ratio)
    result = estimates({"one": one, "change": difference(other, one)})
    assert result["one"]["value"] == rows[:, 0].sum() / rows[:, 1].sum()
    assert result["one"]["low"] < result["one"]["value"] < result["one"]["high"]
    assert result["change"]["value"] == pytest.approx(0.1 * result["one"]["value"])
    spread = [r["high"] - r["low"] for r in result.values()]
    assert spread[1] == pytest.approx(0.1 * spread[0])  # paired: not the spread of two ratios


def test_images_without_a_number_are_left_out_of_their_column_alone():
    result = estimates({"part": np.array([1.0, math.nan, 3.0]), "all": np.array([1.0, 2.0, 6.0])})
    assert result["part"]["value"] == 2
    assert result["all"] == estimates({"all": np.array([1.0, 2.0, 6.0])})["all"]
    assert list(result) == ["part", "all"]


JAVA = r"""#!/usr/bin/env python3
import json, sys
if "-stdio" in sys.argv:
    for line in iter(sys.stdin.readline, ""):
        kind, *parts = line.strip().split(" ||| ")
        if kind == "SCORE":  # matched words and words of the caption
            caption = parts[-1].split()
            print(sum(w in parts[0].split() for w in caption), len(caption), flush=True)
        else:
            a, b = map(float, parts[0].split())
            print(a / b, flush=True); print(a / b, flush=True)
elif "broken.jar" in sys.argv[3]:
    print("boom", file=sys.stderr); sys.exit(1)
else:
    rows = json.load(open(sys.argv[4]))
    f = {r["image_id"]: {"All": {"f": len(r["refs"]) / 10}} for r in rows[::-1]}
    json.dump([{"image_id": i, "scores": s} for i, s in f.items()], open(sys.argv[6], "w"))
"""


@pytest.fixture
def java(tmp_path, monkeypatch):
    """Stands for Java and both jars."""
    program = tmp_path / "java"
    program.write_text(JAVA)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name in java_metrics.JARS.values():
        (tmp_path / "x.jar").touch()
        monkeypatch.setenv(name, str(tmp_path / "x.jar"))
    return tmp_path


def test_meteor_is_the_jars_score_of_summed_statistics(java):
    metric = java_metrics.Meteor([words("a b"), words("c d")])(words("a b", "c x x x"))["meteor"]
    assert value(metric) == pytest.approx(3 / 6)


def test_spice_is_the_jars_f_per_image(java):
    assert java_metrics.spice(words("a", "b"), [words("x"), words("x", "y")]).tolist() == [0.1, 0.2]


def test_jars_that_are_not_there_or_fail_are_one_sentence(java, monkeypatch):
    assert [java_metrics.jar_problem(name) for name in java_metrics.JARS] == ["", ""]
    monkeypatch.setenv("VIZER_SPICE_JAR", str(java / "broken.jar"))
    assert "which is not there" in java_metrics.jar_problem("spice")
    with pytest.raises(UserError, match=r"SPICE's jar '.*broken.jar' failed: boom"):
        java_metrics.spice(words("a"), [words("x")])
    monkeypatch.delenv("VIZER_METEOR_JAR")
    assert java_metrics.jar_problem("meteor") == "VIZER_METEOR_JAR does not name its jar"
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("VIZER_SPICE_JAR", str(java / "x.jar"))
    assert java_metrics.jar_problem("spice") == "there is no Java"
