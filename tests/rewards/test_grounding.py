"""region_grounding by hand: crops, percentiles, swaps, what counts once and what earns nothing."""

import pytest
import torch
from PIL import Image

from rewards import Bank, CaptionBatch, make
from rewards.lib.crops import CROPS, Crops
from rewards.lib.phrases import Swaps, unique

from ..stubs import EOS

KINDS = ("cat", "dog", "car", "red car", "blue car", "tree")


class Eyes:
    """An encoder for which a crop shows one kind of thing; image "cat+dog" has one in each half."""

    name, context_length = "eyes", 77

    def image_features(self, ids, images):
        return torch.stack([self.crop(i) for i in ids])

    def crop(self, name):
        image, _, crop = name.partition("#")
        things = image.split("/")[0].split("+")
        shown = things if crop in ("", "0") else [things[int(crop) % len(things)]]
        return torch.nn.functional.normalize(sum(self.vector(t) for t in shown), dim=0)

    def text_features(self, texts):
        return torch.stack([self.vector(t.removeprefix("a photo of ")) for t in texts])

    def vector(self, kind):
        """A kind is nearer to its noun than to anything else."""
        one = torch.zeros(len(KINDS))
        one[KINDS.index(kind)] = 1.0
        if kind.endswith(" car"):
            one[KINDS.index("car")] = 1.0
        return torch.nn.functional.normalize(one, dim=0)

    def too_long(self, captions):
        return [False] * len(captions)


def tagged(*pairs):
    eyes = Eyes()
    return CaptionBatch(
        image_ids=[i for i, _ in pairs],
        images=[Image.new("RGB", (12, 12))] * len(pairs),
        captions=[c for _, c in pairs],
        groups=[range(len(pairs))],
        completion_ids=[[EOS]] * len(pairs),
        encoders=lambda name: eyes,
        policy=None,
    )


@pytest.fixture
def reward():
    """Prepared on ten images: four with cats, two each with dogs, red cars and trees."""
    built = make("region_grounding", {"step": 1e-6, "max_phrases": 2})
    shown = ["cat"] * 4 + ["dog"] * 2 + ["red car"] * 2 + ["tree"] * 2
    message = ["a cat"] * 4 + ["a dog"] * 2 + ["a red car", "a blue car", "a tree", "a tree"]
    sample = tagged(*((f"{s}/{k}", c) for k, (s, c) in enumerate(zip(shown, message, strict=True))))
    built.prepare(Bank(sample.image_ids, sample.images, sample, None))
    return built


def test_what_is_there_earns_by_its_percentile_and_what_is_not_costs(reward):
    # six of ten bank images fit "cat" less well than one with a cat, eight fit "dog" less well
    scores = reward(tagged(("cat/x", "a cat"), ("dog/x", "a dog"), ("cat/x", "a dog")))
    assert scores == pytest.approx([0.1 / 0.45, 0.3 / 0.45, -1.0], abs=1e-5)


def test_a_thing_in_one_part_of_the_image_is_found_and_the_mean_is_over_phrases(reward):
    both = tagged(("cat+dog/x", "a cat and a dog"), ("cat/x", "a cat and a dog"))
    assert reward(both) == pytest.approx([0.2 / 0.45, (0.1 / 0.45 - 1) / 2], abs=1e-5)
    assert [[p for p, _ in subset] for subset in reward.parts(both)] == [["cat", "dog"]] * 2


def test_an_attribute_must_beat_its_swaps(reward):
    assert reward.swapped("red car") == ["blue car"]
    right, wrong = reward(tagged(("red car/x", "a red car"), ("red car/x", "a blue car")))
    assert right == pytest.approx(0.3 / 0.45, abs=1e-5)
    assert wrong == 0.0  # a car is there, but red fits better


def test_repeated_phrases_count_once_and_long_lists_earn_no_more(reward):
    run_step, again = reward(tagged(("cat/x", "a cat"), ("cat/x", "a cat, a cat and a cat")))
    assert run_step == again
    listed = tagged(("cat+dog/x", "a cat, a dog, a tree"), ("cat+tree/x", "a tree, a cat, a car"))
    assert reward.parts(listed)[0][2] == ("tree", -1.0)
    three = tagged(("cat+dog+tree/x", "a cat, a dog, a tree"))
    assert reward.parts(three)[0][2] == ("tree", 0.0)  # grounded, but past `most`


def test_nothing_named_gets_the_floor(reward):
    assert reward(tagged(("cat/x", ""), ("cat/x", "it is red"))) == [-1.0, -1.0]


def test_it_must_be_prepared_and_says_which_tagger_is_missing(monkeypatch):
    import sys

    from rewards import Missing
    from rewards.lib import text

    with pytest.raises(RuntimeError, match="not prepared"):
        make("region_grounding", {})(tagged(("cat/x", "a cat")))
    text._spacy.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(Missing, match="grounding"):
        make("region_grounding", {"tagger": "spacy"})


def test_swaps_are_adjectives_never_said_of_one_thing():
    swaps = Swaps(["small red car", "large red car", "small blue car", "red tree"], 8)
    assert swaps.others["red"] == ["blue"]
    assert swaps.others["small"] == ["large"]
    assert swaps.others["blue"] == ["red", "large"]  # "large blue" was never said
    assert swaps("blue car") == ["red car", "large car"]
    assert swaps("car") == []
    assert unique(["car", "red car", "red car", "tree"]) == ["red car", "tree"]


def test_fifteen_crops_and_each_image_is_decoded_once():
    decoded = []

    class LazyImages:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            decoded.append(index)
            return Image.new("RGB", (30, 60))

    crops = Crops(LazyImages())
    assert len(crops) == 45
    assert len(CROPS) == 15
    sizes = [crops[k].size for k in range(30)]
    assert decoded == [0, 1]
    assert sizes[:15] == [(30, 60)] + [(15, 30)] * 4 + [(10, 20)] * 9 + [(15, 30)]
    assert len(Crops(LazyImages(), stride=2)) == 30
    assert Crops([Image.new("RGB", (2, 2))])[14].size == (1, 1)


def test_only_as_many_images_as_asked_for_calibrate(reward):
    few = make("region_grounding", {"bank": 5})
    sample = tagged(*((f"cat/{k}", "a cat") for k in range(10)))
    few.prepare(Bank(sample.image_ids, sample.images, sample, None))
    assert len(few.crops) == 5
