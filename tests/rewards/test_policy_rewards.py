"""Rewards of the frozen policy and the gate: their maths by hand, through a stub; their errors."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from rewards import Bank, CaptionBatch, make, win_rate
from rewards.lib.text import content_tokens
from vizer_rl.data import scenes as draw


class Stub:
    """A policy whose answers are written down: by caption or question, image and view."""

    key, instruct = "stub", True

    def __init__(self, told=None, features=None, said=()):
        self.told, self.features, self.said = told or {}, features or {}, list(said)
        self.asked = []

    def image_features(self, ids, images):
        return torch.tensor([self.features[i] for i in ids])

    def log_probs(self, captions, images=None, view="image"):
        images = images or [None] * len(captions)
        rows = [self.told[c, i, view] for c, i in zip(captions, images, strict=True)]
        return [torch.tensor(row) for row in rows]

    def tokens(self, caption):
        first, *rest = caption.split()
        return [first, *(f" {word}" for word in rest)]

    def yes(self, questions, images, view="image"):
        self.asked += questions if view == "image" else []
        found = [self.told[q, i, view] for q, i in zip(questions, images, strict=True)]
        return torch.tensor(found)

    def sample(self, images, count, seed):
        self.asked.append(list(images))
        return [[self.said[k % len(self.said)]] for k in range(len(images))]


def batch(policy, pairs, **more):
    return CaptionBatch(
        image_ids=[i for i, _ in pairs],
        images=[i for i, _ in pairs],
        captions=[c for _, c in pairs],
        groups=[range(len(pairs))],
        completion_ids=[[1]] * len(pairs),
        encoders=None,
        policy=policy,
        **more,
    )


# Image features that are 0 in the mean: v and its double w, two look-alikes, one far away (twice).
PLACES = dict(v=(1.0, 0.0), w=(1.0, 0.0), n=(0.6, 0.8), m=(0.6, -0.8), x=(-1.6, 0.0), y=(-1.6, 0.0))


def seeing(caption, image, *, seen, masked, other):
    """The log-probabilities of a caption under an image, the same masked, and all other images."""
    told = {(caption, i, "image"): other for i in PLACES}
    return told | {(caption, image, "image"): seen, (caption, image, "masked"): masked}


def test_visual_dependence_by_hand():
    told = seeing(
        "a red cat",
        "v",
        seen=[-0.1, -1.0, -2.0],
        masked=[-0.1, -2.0, -6.0],
        other=[-9.0, -1.5, -2.0],
    )
    # red: 1 nat, of which the neighbour gives 0.5; cat: 4, clipped to 3, all of it from either
    for control, red, cat in ((0.0, 1.0, 3.0), (0.5, 0.75, 1.5), (1.0, 0.5, 0.0)):
        reward = make("visual_dependence", {"control": control, "step": 1e-6})
        policy = Stub(told, PLACES)
        reward.features, reward.mean = torch.tensor([*PLACES.values()]), torch.zeros(2)
        reward.images, reward.saturation = [*PLACES], 3.0
        asked = batch(policy, [("v", "a red cat")])
        (parts,) = reward.parts(asked)
        assert parts == [("red", pytest.approx(red)), ("cat", pytest.approx(cat))]
        assert reward(asked) == [pytest.approx((red + cat) / 2 / 3.0, abs=1e-5)]


def test_visual_dependence_costs_an_implausible_token_a_nat_and_saturates():
    reward = make("visual_dependence", {"plausible": 0.01})
    tiny, less = math.log(0.009), math.log(0.011)
    nats = reward.nats(*(torch.tensor(x) for x in ([tiny, less], [-9.0, -9.0], [-9.0, -9.0])))
    assert nats.tolist() == [-1.0, 3.0]
    reward.saturation = 0.5
    assert [reward.score(m) for m in (0.25, 0.5, 3.0, -0.1, -1.0)] == pytest.approx(
        [0.5, 1.0, 1.0, -0.2, -1.0]
    )
    assert reward.score(None) == -1.0, "a caption without content words"


def test_visual_dependence_prepares_neighbours_and_saturation():
    told = {}
    for nats, image in zip((1.0, 1.0, 2.0, 2.0, 0.0, 0.0), PLACES, strict=True):
        told |= seeing(image, image, seen=[-1.0], masked=[-1.0 - nats], other=[-5.0])
    policy = Stub(told, PLACES)
    sample = batch(policy, [(i, i) for i in PLACES])
    reward = make("visual_dependence", {})
    with pytest.raises(RuntimeError, match="not prepared"):
        reward(sample)
    reward.prepare(Bank([*PLACES], [*PLACES], sample, None))
    assert reward.saturation == pytest.approx(2.0)  # 0 0 1 1 2 2: the 90th percentile
    near_v, near_n = reward.neighbours(batch(policy, [("v", ""), ("n", "")]))
    assert near_v in "nm", "not w, which is the same picture"
    assert near_n in "vw"
    few = batch(policy, [("v", "v"), ("n", "n")])
    with pytest.raises(ValueError, match="in 2 images: need 3"):
        reward.prepare(Bank(["v", "n"], ["v", "n"], few, None))
    for image in PLACES:  # a base that does not look: its noise is not blown up to 1
        told |= seeing(image, image, seen=[-1.0], masked=[-1.001], other=[-5.0])
    reward.prepare(Bank([*PLACES], [*PLACES], sample, None))
    assert max(reward(sample)) <= 0.02


def test_content_tokens_are_those_of_words_that_say_something():
    pieces = ["a", " sk", "ate", "board", " and", " the", " red", "-", "ish", " dog", "."]
    found = [pieces[t].strip() for t in content_tokens(pieces)]
    assert found == ["sk", "ate", "board", "red", "ish", "dog"]
    assert content_tokens([]) == []


def photo(shade):
    """Dark on the left, bright on the right."""
    ramp = np.tile(np.linspace(0, shade, 40, dtype=np.uint8), (20, 1))
    return Image.fromarray(ramp).convert("RGB")


SAID = ["a red cat", "a red cat", "a dog", "a dog left of cats", "a blue cat", "a blue bird"]


def support(tmp_path, policy, pairs, images):
    ids = [*images]
    known = batch(policy, [(i, "") for i in ids], prompt="Describe.")
    known = replace(known, images=[*images.values()])
    reward = make("sample_support", {"samples": 4, "min_samples": 2})
    reward.prepare(Bank(ids, known.images, known, tmp_path))
    asked = replace(batch(policy, pairs), images=[images.get(i, photo(77)) for i, _ in pairs])
    return reward, asked


def test_sample_support_by_hand(tmp_path):
    pairs = [("x", c) for c in ("red cats and cat", "a red cat left of a dog", "a mat", "")]
    reward, asked = support(tmp_path, Stub(said=SAID), pairs, {"x": photo(200)})
    # without left or right: the last two plain captions and the two mirrored ones
    assert reward.parts(asked)[0] == [("red", 0.0), ("cat", 1.0)]
    # with: the four plain ones, where red, cat and dog are said twice or more
    assert reward.parts(asked)[1] == [("red", 1.0), ("cat", 1.0), ("dog", 1.0)]
    assert reward(asked) == [0.5, 1.0, 0.0, 0.0]


def test_sample_support_keeps_its_samples_by_policy_and_pixels(tmp_path):
    first, again, other = Stub(said=SAID), Stub(said=["no"]), Stub(said=["a red fox"])
    reward, asked = support(tmp_path, first, [("x", "red")], {"x": photo(200), "y": photo(100)})
    assert len(first.asked) == 1
    assert len(first.asked[0]) == 2 * 6
    reward, asked = support(tmp_path, again, [("x", "red"), ("z", "no")], {"x": photo(200)})
    assert not again.asked, "sampled twice"
    reward(asked)
    assert len(again.asked) == 1, "z was not in the bank"
    support(tmp_path, again, [], {"x": photo(10)})
    assert len(again.asked) == 2, "another image under the same id"
    other.key = "other"
    support(tmp_path, other, [], {"x": photo(200)})
    assert len(other.asked) == 1, "another policy"
    names = sorted(tmp_path.iterdir())
    assert [len(json.loads(path.read_text())) for path in names].count(4) == 1
    assert len(names) == 2


def test_sample_support_mirrors_only_the_last_third(tmp_path):
    policy = Stub(said=SAID)
    support(tmp_path, policy, [], {"x": photo(200)})
    (views,) = policy.asked
    halves = [np.asarray(v.convert("L"), float) for v in views]
    brighter = [h[:, h.shape[1] // 2 :].mean() > h[:, : h.shape[1] // 2].mean() for h in halves]
    assert brighter == [True] * 4 + [False] * 2
    assert all(32 <= v.width <= 40 and 16 <= v.height <= 20 for v in views)
    assert len({v.tobytes() for v in views}) == 6


def asks(**gains):
    told = {}
    for claim, gain in gains.items():
        article = "an" if claim[0] in "aeiou" else "a"
        what = claim.replace("_", " ")
        question = f"Is there {article} {what} in the image? Answer yes or no."
        told[question, "v", "image"], told[question, "v", "masked"] = 0.5 + gain, 0.5
    return told


def test_claim_check_by_hand():
    policy = Stub(asks(red_cat=0.4, old_dog=-0.2, tree=0.3))
    captions = ["a red cat and an old dog", "two old dogs by a tree", "nothing"]
    asked = batch(policy, [("v", c) for c in captions])
    reward = make("claim_check", {})
    assert reward(asked) == pytest.approx([0.1, 0.06, -1.0])  # .05 is halfway: to the even step
    assert reward.parts(asked)[0] == [
        ("red cat", pytest.approx(0.4)),
        ("old dog", pytest.approx(-0.2)),
    ]
    policy.asked.clear()
    reward(asked)
    assert len(policy.asked) == 3, "the dog of two captions is asked for once"
    assert make("claim_check", {"most": 1})(asked)[:2] == pytest.approx([0.4, -0.2])


def test_claim_check_refuses_a_policy_that_answers_nothing():
    policy = Stub()
    policy.instruct = False
    asked = batch(policy, [("v", "a cat")])
    with pytest.raises(ValueError, match=r"not instruction-tuned.*policy\.instruct=true"):
        make("claim_check", {}).prepare(Bank(["v"], ["v"], asked, None))
    with pytest.raises(ValueError, match="not instruction-tuned"):
        make("claim_check", {})(asked)


def test_fluency_by_hand():
    nats = {"one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0, "six": 6.0}
    told = {(word, None, "text"): [-n, -n] for word, n in nats.items()} | {("", None, "text"): []}
    policy = Stub(told)
    reward = make("fluency", {})
    with pytest.raises(RuntimeError, match="not prepared"):
        reward(batch(policy, [("v", "one")]))
    sample = batch(policy, [("v", c) for c in ("one", "two", "three", "")])
    reward.prepare(Bank(["v"], ["v"], sample, None))  # mean 2, standard deviation 1
    told = batch(policy, [("v", c) for c in ("one", "three", "four", "six", "")])
    assert reward(told) == pytest.approx([0.0, 0.0, -0.5, -1.0, -1.0])
    with pytest.raises(ValueError, match="are empty"):
        reward.prepare(Bank(["v"], ["v"], batch(policy, [("v", "")]), None))


@pytest.mark.parametrize(
    ("caption", "failed"),
    [
        ("a small red circle and a small red square", []),
        ("Two dogs (one of them <20 kg) play; score 3 > 2!", []),
        ("a man, who is 1.85 m tall, e.g. a U.S. player #", []),
        ("", ["empty"]),
        (" .,; ", ["empty"]),
        ("a cat a cat", ["repetition"]),
        ("red red circle", []),
        ("red red red circle", ["repetition"]),
        ("a red cat on a mat, and a red cat on a mat", ["repetition"]),
        ("So: describe the Image, it shows a cat", ["prompt echo"]),
        ("describe the scene", []),
        ("a cat <image>", ["special token"]),
        ("a cat<|im_end|>", ["special token"]),
        ("a cat</s>", ["special token"]),
        ("<PERSON> in 2008", ["placeholder"]),
        ("a cat by [NAME]", ["placeholder"]),
        ("see https://a.b", ["link"]),
        ("cats at example.com", ["link"]),
        ("a cat #cats", ["hash tag"]),
    ],
)
def test_gate_names_what_fails(caption, failed):
    reward = make("gate", {})
    asked = batch(None, [("v", caption)], prompt="Describe the image.")
    assert reward.parts(asked) == [[(name, -1.0) for name in failed]]
    assert reward(asked) == [-1.0 if failed else 0.0]


def test_gate_wants_an_end_and_knows_no_prompt_where_none_is_told():
    asked = batch(None, [("v", "a cat"), ("v", "a cat")], ended=[True, False])
    assert make("gate", {})(asked) == [0.0, -1.0]
    assert make("gate", {}).parts(asked) == [[], [("no end", -1.0)]]


def test_gate_lets_every_true_scene_caption_through_and_none_said_twice():
    captions = [draw.sample(5_000_000 + k).caption for k in range(2000)]
    asked = batch(None, [("v", c) for c in captions])
    reward = make("gate", {})
    assert set(reward(asked)) == {0.0}
    assert win_rate(reward, asked, [f"{c} {c}" for c in captions]) == 1.0
    assert win_rate(reward, asked, [f"{c} and {c}" for c in captions]) == 1.0


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("fluency", {"free": 3.0}, "need 0 <= free < worst, not 3.0 and 3.0"),
        ("gate", {"repeated": 20}, r"repeated in \[0, 1\], not 4 and 20"),
        ("sample_support", {"min_samples": 9}, "1 <= min_samples <= samples, not 8 and 9"),
        ("claim_check", {"most": 0}, "need most >= 1, not 0"),
    ],
)
def test_a_wrong_parameter_is_one_sentence(name, parameters, said):
    with pytest.raises(ValueError, match=f"{name}.*{said}"):
        make(name, parameters)
