"""Captions of any length under one rule: one sentence is unchanged, and no cliff at the context."""

import numpy as np
import pytest
import torch

from experiments import long_captions
from rewards.lib.chunks import Chunked, caption_cosines
from vizer_rl.data import scenes
from vizer_rl.scoring.clip import OpenClip

from ..stubs import Stub

ENDLESS = "a red circle and a blue star " * 20


@pytest.fixture(scope="module", params=["embedded:a", "embedded:b"])
def encoder(request):
    return OpenClip(request.param, torch.device("cpu"))


def test_captions_of_one_sentence_keep_their_vectors_to_the_bit(encoder):
    captions = [scenes.sample(k).caption for k in range(40)]
    captions += [captions[0], "", " ", "  a red circle ", "a red circle.", "zebra?\n", ENDLESS]
    chunked = Chunked(encoder, captions)
    assert torch.equal(chunked.vectors, encoder.text_features(captions))
    assert chunked.parts == [[caption] for caption in captions]
    assert chunked.cut() == 1  # the endless one


def test_one_word_more_than_fits_is_no_cliff(encoder):
    rules = long_captions.scores_by_rule(encoder, 30)
    *_, now = rules.values()
    before = rules["whole while it fits (before)"]
    steps, old_steps = np.abs(np.diff(now)), np.abs(np.diff(before))
    assert old_steps[:, 1].mean() > 4 * old_steps[:, 0].mean(), "the test has the cliff to find"
    assert steps[:, 1].mean() < 2 * steps[:, 0].mean() + 0.005
    assert steps[:, 1].mean() < 0.03
    assert steps[:, 1].max() < 0.15 < old_steps[:, 1].max()
    assert np.allclose(before[:, 2], rules["by sentences"][:, 2])


def test_a_random_scorer_has_no_cliff_either(tmp_path):
    scores = long_captions.scores_by_rule(long_captions.random_scorer(tmp_path), 4)
    assert np.abs(np.diff(scores["by sentences, weighted by words (now)"])).max() < 0.02


def test_sentences_count_by_their_words():
    texts = {"a dog.": [1.0, 0.0], "it sits on a green sofa.": [0.0, 1.0]}
    stub = Stub({"x": [1.0, 0.0]}, texts)
    (vector,) = Chunked(stub, [" ".join(texts)]).vectors
    assert vector.tolist() == pytest.approx([2 / 8, 6 / 8])
    assert caption_cosines(stub, ["x"], [None], [" ".join(texts)]).tolist() == pytest.approx([0.25])


def test_the_end_of_a_long_caption_counts(encoder):
    """The held-out scorer must not choose an adapter by the beginnings of its captions."""
    scene = scenes.sample(3)
    start = f"{scene.caption}. "
    while encoder.too_long([start]) == [False]:
        start += f"{scene.caption}. "
    captions = [f"{start}{scene.caption}.", f"{start}a large green cross."]
    right, wrong = caption_cosines(encoder, ["x", "x"], [scenes.render(scene)] * 2, captions)
    assert right > wrong + 0.02
    cut = encoder.text_features(captions)  # the caption as one text: its end makes no difference
    assert torch.equal(cut[0], cut[1])
