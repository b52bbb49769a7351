"""Certainty as a judge of captions by hand; an image's captions are read in one go."""

from types import SimpleNamespace

import numpy as np
import pytest

from vizer_rl.audit.judges import TOGETHER, Judges
from vizer_rl.audit.word_judge import WordJudge

from ..rewards.test_certainty import BASE, WHITE, Written, batch, picture

SURE = {"small": 1.0, "red": 0.95, "circle": 0.7}


class Pictures(Judges):
    """Judges without a run: the images are objects, the captions of the base are given."""

    def __init__(self, base, policy):
        sample = batch(policy, base)
        scoring = SimpleNamespace(
            rewards=[], batch=lambda ids, images, captions, _: batch(policy, captions, images)
        )
        self.parts = SimpleNamespace(scoring=scoring, bank=SimpleNamespace(sample=sample))

    def images(self, ids, view=None):
        return [picture(WHITE) for _ in ids]


def test_a_caption_is_worth_its_sure_words_less_its_unsure_ones():
    judge = WordJudge(Pictures(BASE, Written(SURE)))
    again = "a small red circle and a small red circle"
    values = judge(["x", "y"], ["a small red circle", again])
    # the dial is at .8: c - 4 (1 - c) is 1, .75 and -.5; again, only what costs counts
    assert values == pytest.approx([1.25, 0.75], abs=1e-5)
    assert judge.objection == ""


@pytest.mark.parametrize(
    ("base", "says"), [(["of the"], "no content words"), (["a circle"] * 2, "alone in its class")]
)
def test_captions_that_teach_no_classes_leave_it_out_and_say_why(base, says):
    judge = WordJudge(Pictures(base, Written({})))
    assert says in judge.objection
    assert np.isnan(judge(["x"], ["a small red circle"])).all()


def test_captions_of_an_image_stand_together_and_share_it():
    calls = []

    def values(ids, captions, images):
        calls.append([ids, captions, [id(image) for image in images]])
        return [float(caption) for caption in captions]

    names = [f"{k % 20:02}" for k in range(60)]
    captions = [str(k % 40) for k in range(60)]  # the last 20 are the first again
    result = Pictures(BASE, Written({})).by_image(names, captions, values)
    assert result.tolist() == [k % 40 for k in range(60)]
    assert [len(ids) for ids, _, _ in calls] == [2 * TOGETHER, 2 * (20 - TOGETHER)]
    for ids, _, images in calls:
        assert ids == sorted(ids)
        assert len({*zip(ids, images, strict=True)}) == len({*ids}) == len({*images})
