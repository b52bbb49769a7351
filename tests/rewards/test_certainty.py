"""Word certainty by hand: a policy whose probabilities are written down; facts, classes, errors."""

import json
import math

import pytest
import torch
from PIL import Image

from rewards import Bank, CaptionBatch, make
from rewards.lib.facts import repeated
from rewards.lib.images import blanked
from rewards.lib.lexicon import Lexicon
from rewards.lib.reliability import Reliability, fit_temperature, sight, sight_objection, tempered
from rewards.lib.tagged_words import TaggedWords
from rewards.lib.word_classes import WordClasses

BASE = [
    "a small red circle left of a large blue square",
    "a large blue circle above a small red square",
    "a small blue square and a large red circle",
    "two large red squares",
    "two small blue circles",
    "three large blue squares",
    "three small red circles",
    "an image of a small red square",
]
WHITE, GREY = (255, 255, 255), (96, 96, 96)


class Written:
    """A policy that is sure of each word as the table says; a word that it lacks has 1 / class.

    "a" is the weight of each rival beside the 1 of a class.
    """

    key, instruct = "written", False

    def __init__(self, sure, blank=None, split=False):
        self.sure, self.blank, self.split = sure, blank or {}, split
        self.read = []

    def word_probs(self, captions, places_N, images, view="image"):
        rows = []
        for caption, row, image in zip(captions, places_N, images, strict=True):
            table = self.blank if blanked(image).tobytes() == image.tobytes() else self.sure
            self.read.append((caption, table is self.blank))
            rows.append([self._probabilities(place, table) for place in row])
        return rows

    def _probabilities(self, place, table):
        count = len(place.alternatives)
        c = table.get(place.word, 1 / (1 + count))
        rivals = [table.get("a", 0.0)] * (len(place.prefixes) - 1 - count)
        p = torch.tensor([c, *[(1 - c) / count] * count, *rivals])
        return p / p.sum()

    def tokens(self, caption):
        return [*caption] if self.split else caption.split()


def picture(colour, dot=(0, 0, 0)):
    image = Image.new("RGB", (8, 8), colour)
    image.putpixel((3, 3), dot)
    return image


def batch(policy, captions, images=None):
    images = images or [picture(WHITE)] * len(captions)
    names = [f"{image.getpixel((0, 0))}" for image in images]
    groups, ids = [range(len(captions))], [[1]] * len(captions)
    return CaptionBatch(names, images, list(captions), groups, ids, None, policy)


def prepared(policy, base=BASE, **parameters):
    reward = make("certainty", {"step": 1e-6, "temperature": 1.0, **parameters})
    sample = batch(policy, base)
    message = reward.prepare(Bank(sample.image_ids, sample.images, sample, None))
    return reward, message


def test_a_sure_word_pays_and_an_unsure_one_costs_by_the_dial():
    policy = Written({"red": 0.95, "circle": 0.7, "small": 1.0})
    for at_least, penalty in ((0.8, 4.0), (0.75, 3.0), (0.9, 9.0)):
        reward, _ = prepared(policy, at_least=at_least, prior=False)
        (parts,) = reward.parts(batch(policy, ["a small red circle"]))
        values = [1.0, 0.95 - penalty * 0.05, 0.7 - penalty * 0.3]
        assert [value for _, value in parts] == pytest.approx(values, abs=1e-5)
        (score,) = reward(batch(policy, ["a small red circle"]))
        assert score == pytest.approx(sum(values), abs=1e-5), "a sum, not a mean"
    assert [text for text, _ in parts] == ["small 1.00", "red 0.95", "*circle* 0.70"]


def test_what_is_as_sure_on_a_blank_image_has_to_pay_by_sight():
    sure = {"red": 0.95, "circle": 0.9, "small": 0.5}
    policy = Written(sure, {"red": 0.95, "circle": 0.2, "small": 0.9})
    reward, _ = prepared(policy)
    (parts,) = reward.parts(batch(policy, ["a small red circle"]))
    # Two words a class. small: .5 - 4 (.5), whatever a blank image says. red: as sure without
    # sight, so .5 by sight. circle: .901 / .201 over that and .101 / .801, .973; its .9 is less
    assert [value for _, value in parts] == pytest.approx([-1.5, -1.5, 0.5], abs=1e-4)
    texts = ["*small* 0.50", "*red* 0.95 (by sight 0.50)", "circle 0.90 (by sight 0.97)"]
    assert [text for text, _ in parts] == texts


def test_sight_is_the_odds_over_those_of_a_blank_image():
    image, blank = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.7, 0.1])
    odds, prior = 0.601 / 0.401, 0.201 / 0.801  # .001 on each side
    assert sight(image, blank) == pytest.approx(odds / (odds + prior))
    assert sight(blank, blank) == pytest.approx(0.5)
    image, blank = torch.tensor([1e-9, 0.02, 0.98]), torch.tensor([1e-12, 0.9, 0.1])
    assert sight(image, blank) == pytest.approx(0.5, abs=1e-3), "a thousand times likelier: nothing"


def test_two_of_one_thing_is_sure_among_numbers_and_not_by_sight():
    # "a": as likely with the image as without, where "two" is half as likely as without.
    likely = {"two": 0.9, "three": 0.1, "a": 1.0}
    policy = Written(likely, {"two": 0.9, "three": 0.1, "a": 0.25})
    reward, _ = prepared(policy, [*BASE, "two circles", "three circles"])
    (((text, value), *_),) = reward.parts(batch(policy, ["two circles"]))
    odds, prior = 0.451 / 0.551, 0.721 / 0.281  # .9 of 2.0, .9 of 1.25
    by_sight = odds / (odds + prior)
    assert text == f"*two* 0.90 (by sight {by_sight:.2f})"
    assert value == pytest.approx(by_sight - 4 * (1 - by_sight), abs=1e-4)


def test_saying_nothing_or_an_opening_alone_scores_nothing_and_more_that_is_sure_scores_more():
    policy = Written(dict.fromkeys(("small", "red", "circle", "square", "image"), 0.99))
    reward, _ = prepared(policy)
    captions = ["", "an image of", "a circle", "a red circle", "an image of a red circle"]
    nothing, opening, noun, both, opened = reward(batch(policy, captions))
    assert nothing == opening == 0.0
    assert 0 < noun < both
    assert opened == both


def test_a_fact_that_is_said_again_counts_once():
    policy = Written(dict.fromkeys(("small", "red", "circle", "square", "blue", "two"), 0.99))
    reward, _ = prepared(policy)
    said = ["a red circle", "a red circle and a red circle", "a red circle and a circle"]
    single, twice, less = reward(batch(policy, said))
    assert single == twice == less
    policy.sure["circle"] = 0.5
    single, twice = reward(batch(policy, said[:2]))
    assert twice < single, "a cost is paid each time"


@pytest.mark.parametrize(
    ("caption", "again"),
    [
        ("a small red circle and a small blue circle", []),
        ("a circle and a red circle", ["circle"]),
        ("two red circles and a red circle", ["red", "circle"]),
        ("a red circle left of a square and a square right of a red circle", "all but three"),
        ("a red circle above a blue circle and a red square", []),
        ("a red red red circle", ["red", "red"]),
        ("red red red", ["red"]),
    ],
)
def test_which_words_say_a_fact_again(caption, again):
    lexicon = Lexicon.learn([*BASE, "a square right of a circle"] * 2)
    row = WordClasses(lexicon).places(caption)
    flags = zip(row, repeated(caption, row), strict=True)
    if again == "all but three":
        again = ["square", "right of", "red", "circle"]
    assert [place.word for place, flag in flags if flag] == again


def test_blank_images_are_read_by_their_colour_and_the_words_so_far():
    policy = Written(dict.fromkeys(("small", "red", "circle"), 0.99))
    reward, _ = prepared(policy)
    policy.read.clear()
    pictures = [picture(WHITE), picture(WHITE, (9, 9, 9)), picture(GREY)]
    captions = ["a small red circle", "a small red circle", "a small red circle"]
    requests = batch(policy, captions, pictures)
    requests.image_ids[:] = ["x", "y", "z"]
    reward(requests)
    blank = [caption for caption, is_blank in policy.read if is_blank]
    assert len(blank) == 2, "once for both white ones, once for the grey one"
    policy.read.clear()
    reward(requests)
    assert not any(is_blank for _, is_blank in policy.read)


def test_probabilities_that_views_do_not_bear_out_are_softened():
    own, views = [torch.tensor([0.99, 0.01])] * 10, [torch.tensor([0.8, 0.2])] * 10
    temperature = fit_temperature(own, views)
    assert float(tempered(own[0], temperature)[0]) == pytest.approx(0.8, abs=0.01)
    assert temperature == pytest.approx(math.log(99) / math.log(4), abs=0.05)
    assert fit_temperature(views, own) == 1.0, "never sharper"
    assert tempered(own[0], 1.0) is own[0]
    table = Reliability.measure(own, views, 1.0)
    (row,) = table.bins
    assert (row.words, row.low, row.high) == (10, 0.95, 1.0)
    assert (row.certainty, row.agreement) == pytest.approx((0.99, 0.8))
    assert "0.99 → 0.80 (10)" in table.sentence()


def test_the_table_is_printed_and_stored(tmp_path):
    policy = Written({"red": 0.95})
    reward, message = prepared(policy, at_least=0.9)
    assert message.startswith("certainty → agreement of views (words), at temperature 1.00: 0.50")
    reward.save(tmp_path)
    stored = json.loads((tmp_path / "certainty.json").read_text())
    assert stored["at_least"] == 0.9
    assert stored["temperature"] == 1.0
    assert sum(row["words"] for row in stored["bins"]) > 20


def test_a_base_that_is_as_sure_with_another_image_is_objected_to():
    policy = Written({"red": 0.95})
    reward, _ = prepared(policy)  # the same with each image
    assert "no surer of its words with their image" in reward.objection
    assert "(50% of" in reward.objection
    own, other = [torch.tensor([0.9, 0.1])] * 20, [torch.tensor([0.2, 0.8])] * 20
    assert sight_objection(own, other) == ""
    assert sight_objection(other, own)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (["of the", "and so on", ""], "3 captions of the base have no content words"),
        (["a circle", "a circle"], "alone in its class .circle., so there is nothing"),
    ],
)
def test_captions_to_learn_nothing_from_are_refused_in_a_sentence(base, message):
    with pytest.raises(ValueError, match=message):
        prepared(Written({}), base)


def test_what_is_out_of_the_ordinary_is_in_the_sentence():
    _, message = prepared(Written({}), [*BASE, "a red circle over a kangaroo"])
    assert "not judged, being alone in their class: 1 words (kangaroo)" in message
    _, message = prepared(Written({}, split=True))
    assert "the tokenizer splits each of its words" in message
    with pytest.raises(RuntimeError, match="not prepared"):
        make("certainty", {})(batch(Written({}), ["a circle"]))


@pytest.mark.parametrize("at_least", [0.5, 1.0, 0.2, 80.0])
def test_a_dial_outside_its_range_is_a_sentence(at_least):
    with pytest.raises(ValueError, match=f"need at_least between 0.5 and 1, not {at_least}"):
        make("certainty", {"at_least": at_least})


def test_real_text_has_its_classes_from_a_tagger():
    captions = [
        "Two brown dogs are playing with a ball on the beach.",
        "A brown cat sleeps on a wooden table.",
        "A small dog and a cat on a green sofa.",
        "Two cats and a small dog on a wooden chair with a green ball.",
    ]
    tagged = TaggedWords(captions, "builtin")
    assert tagged.others("dog") == ["ball", "cat"]
    assert tagged.others("brown") == ["green", "small", "wooden"]
    row = tagged.places("A green dog on a zebra.")
    assert [place.word for place in row] == ["green", "dog", "zebra"]
    assert row[2].alternatives == ("ball", "cat", "dog")
