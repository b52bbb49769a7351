"""Rewards of the frozen policy and the gate: their maths by hand, through a stub; their errors."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from rewards import Bank, CaptionBatch, make, win_rate
from rewards.lib import disk_cache
from rewards.lib.text import content_tokens
from vizer_rl.data import scenes as draw


class Stub:
    """A policy whose answers are written down: by caption or question, image and view."""

    key, instruct = "stub", True

    def __init__(self, log_probs_of=None, features=None, message=()):
        self.log_probs_of, self.features, self.message = (
            log_probs_of or {},
            features or {},
            list(message),
        )
        self.requests = []

    def image_features(self, ids, images):
        return torch.tensor([self.features[i] for i in ids])

    def log_probs(self, captions, images=None, view="image"):
        images = images or [None] * len(captions)
        rows = [self.log_probs_of[c, i, view] for c, i in zip(captions, images, strict=True)]
        return [torch.tensor(row) for row in rows]

    def tokens(self, caption):
        first, *rest = caption.split()
        return [first, *(f" {word}" for word in rest)]

    def yes(self, questions, images, view="image"):
        self.requests += questions if view == "image" else []
        matches = [self.log_probs_of[q, i, view] for q, i in zip(questions, images, strict=True)]
        return torch.tensor(matches)

    def sample(self, images, count, seed):
        self.requests.append(list(images))
        return [[self.message[k % len(self.message)]] for k in range(len(images))]


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


def seeing(caption, image, *, visible, masked, other):
    """The log-probabilities of a caption under an image, the same masked, and all other images."""
    log_probs_of = {(caption, i, "image"): other for i in PLACES}
    return log_probs_of | {(caption, image, "image"): visible, (caption, image, "masked"): masked}


def test_visual_dependence_by_hand():
    log_probs_of = seeing(
        "a red cat",
        "v",
        visible=[-0.1, -1.0, -2.0],
        masked=[-0.1, -2.0, -6.0],
        other=[-9.0, -1.5, -2.0],
    )
    # red: 1 nat, of which the neighbour gives 0.5; cat: 4, clipped to 3, all of it from either
    for control, red, cat in ((0.0, 1.0, 3.0), (0.5, 0.75, 1.5), (1.0, 0.5, 0.0)):
        reward = make("visual_dependence", {"control": control, "step": 1e-6})
        policy = Stub(log_probs_of, PLACES)
        reward.features, reward.mean = torch.tensor([*PLACES.values()]), torch.zeros(2)
        reward.images, reward.saturation = [*PLACES], 3.0
        requests = batch(policy, [("v", "a red cat")])
        (parts,) = reward.parts(requests)
        assert parts == [("red", pytest.approx(red)), ("cat", pytest.approx(cat))]
        assert reward(requests) == [pytest.approx((red + cat) / 2 / 3.0, abs=1e-5)]


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
    log_probs_of = {}
    for nats, image in zip((1.0, 1.0, 2.0, 2.0, 0.0, 0.0), PLACES, strict=True):
        log_probs_of |= seeing(image, image, visible=[-1.0], masked=[-1.0 - nats], other=[-5.0])
    policy = Stub(log_probs_of, PLACES)
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
        log_probs_of |= seeing(image, image, visible=[-1.0], masked=[-1.001], other=[-5.0])
    reward.prepare(Bank([*PLACES], [*PLACES], sample, None))
    assert max(reward(sample)) <= 0.02


def test_content_tokens_are_those_of_words_that_say_something():
    pieces = ["a", " sk", "ate", "board", " and", " the", " red", "-", "ish", " dog", "."]
    matches = [pieces[t].strip() for t in content_tokens(pieces)]
    assert matches == ["sk", "ate", "board", "red", "ish", "dog"]
    assert content_tokens([]) == []


def photo(shade):
    """Dark on the left, bright on the right."""
    ramp = np.tile(np.linspace(0, shade, 40, dtype=np.uint8), (20, 1))
    return Image.fromarray(ramp).convert("RGB")


CAPTIONS = ["a red cat", "a red cat", "a dog", "a dog left of cats", "a blue cat", "a blue bird"]


def support(tmp_path, policy, pairs, images):
    ids = [*images]
    truth = batch(policy, [(i, "") for i in ids], prompt="Describe.")
    truth = replace(truth, images=[*images.values()])
    reward = make("sample_support", {"samples": 4, "min_samples": 2})
    reward.prepare(Bank(ids, truth.images, truth, tmp_path))
    requests = replace(batch(policy, pairs), images=[images.get(i, photo(77)) for i, _ in pairs])
    return reward, requests


def test_sample_support_by_hand(tmp_path):
    pairs = [("x", c) for c in ("red cats and cat", "a red cat left of a dog", "a mat", "")]
    reward, requests = support(tmp_path, Stub(message=CAPTIONS), pairs, {"x": photo(200)})
    # without left or right: the last two plain captions and the two mirrored ones
    assert reward.parts(requests)[0] == [("red", 0.0), ("cat", 1.0)]
    # with: the four plain ones, where red, cat and dog are said twice or more
    assert reward.parts(requests)[1] == [("red", 1.0), ("cat", 1.0), ("dog", 1.0)]
    assert reward(requests) == [0.5, 1.0, 0.0, 0.0]


def test_sample_support_keeps_its_samples_by_policy_and_pixels(tmp_path):
    first, again, other = Stub(message=CAPTIONS), Stub(message=["no"]), Stub(message=["a red fox"])
    reward, requests = support(tmp_path, first, [("x", "red")], {"x": photo(200), "y": photo(100)})
    assert len(first.requests) == 1
    assert len(first.requests[0]) == 2 * 6
    reward, requests = support(tmp_path, again, [("x", "red"), ("z", "no")], {"x": photo(200)})
    assert not again.requests, "sampled twice"
    reward(requests)
    assert len(again.requests) == 1, "z was not in the bank"
    support(tmp_path, again, [], {"x": photo(10)})
    assert len(again.requests) == 2, "another image under the same id"
    other.key = "other"
    support(tmp_path, other, [], {"x": photo(200)})
    assert len(other.requests) == 1, "another policy"
    names = sorted(tmp_path.iterdir())
    assert [len(json.loads(disk_cache.read(path))) for path in names].count(4) == 1
    assert len(names) == 2


def test_sample_support_mirrors_only_the_last_third(tmp_path):
    policy = Stub(message=CAPTIONS)
    support(tmp_path, policy, [], {"x": photo(200)})
    (views,) = policy.requests
    halves = [np.asarray(v.convert("L"), float) for v in views]
    brighter = [h[:, h.shape[1] // 2 :].mean() > h[:, : h.shape[1] // 2].mean() for h in halves]
    assert brighter == [True] * 4 + [False] * 2
    assert all(32 <= v.width <= 40 and 16 <= v.height <= 20 for v in views)
    assert len({v.tobytes() for v in views}) == 6


def asks(**gains):
    log_probs_of = {}
    for claim, gain in gains.items():
        article = "an" if claim[0] in "aeiou" else "a"
        what = claim.replace("_", " ")
        question = f"Is there {article} {what} in the image? Answer yes or no."
        log_probs_of[question, "v", "image"], log_probs_of[question, "v", "masked"] = (
            0.5 + gain,
            0.5,
        )
    return log_probs_of


def test_claim_check_by_hand():
    policy = Stub(asks(red_cat=0.4, old_dog=-0.2, tree=0.3))
    captions = ["a red cat and an old dog", "two old dogs by a tree", "nothing"]
    requests = batch(policy, [("v", c) for c in captions])
    reward = make("claim_check", {})
    assert reward(requests) == pytest.approx([0.1, 0.06, -1.0])  # .05 is halfway: to the even step
    assert reward.parts(requests)[0] == [
        ("red cat", pytest.approx(0.4)),
        ("old dog", pytest.approx(-0.2)),
    ]
    policy.requests.clear()
    reward(requests)
    assert len(policy.requests) == 3, "the dog of two captions is asked for once"
    assert make("claim_check", {"max_claims": 1})(requests)[:2] == pytest.approx([0.4, -0.2])


def test_claim_check_refuses_a_policy_that_answers_nothing():
    policy = Stub()
    policy.instruct = False
    requests = batch(policy, [("v", "a cat")])
    with pytest.raises(ValueError, match=r"not instruction-tuned.*policy\.instruct=true"):
        make("claim_check", {}).prepare(Bank(["v"], ["v"], requests, None))
    with pytest.raises(ValueError, match="not instruction-tuned"):
        make("claim_check", {})(requests)


def test_fluency_by_hand():
    nats = {"one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0, "six": 6.0}
    log_probs_of = {(word, None, "text"): [-n, -n] for word, n in nats.items()} | {
        ("", None, "text"): []
    }
    policy = Stub(log_probs_of)
    reward = make("fluency", {})
    with pytest.raises(RuntimeError, match="not prepared"):
        reward(batch(policy, [("v", "one")]))
    sample = batch(policy, [("v", c) for c in ("one", "two", "three", "")])
    reward.prepare(Bank(["v"], ["v"], sample, None))  # mean 2, standard deviation 1
    log_probs_of = batch(policy, [("v", c) for c in ("one", "three", "four", "six", "")])
    assert reward(log_probs_of) == pytest.approx([0.0, 0.0, -0.5, -1.0, -1.0])
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
    requests = batch(None, [("v", caption)], prompt="Describe the image.")
    assert reward.parts(requests) == [[(name, -1.0) for name in failed]]
    assert reward(requests) == [-1.0 if failed else 0.0]


def test_gate_wants_an_end_and_knows_no_prompt_where_none_is_told():
    requests = batch(None, [("v", "a cat"), ("v", "a cat")], ended=[True, False])
    assert make("gate", {})(requests) == [0.0, -1.0]
    assert make("gate", {}).parts(requests) == [[], [("no end", -1.0)]]


def test_gate_lets_every_true_scene_caption_through_and_none_said_twice():
    captions = [draw.sample(5_000_000 + k).caption for k in range(2000)]
    requests = batch(None, [("v", c) for c in captions])
    reward = make("gate", {})
    assert set(reward(requests)) == {0.0}
    assert win_rate(reward, requests, [f"{c} {c}" for c in captions]) == 1.0
    assert win_rate(reward, requests, [f"{c} and {c}" for c in captions]) == 1.0


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("fluency", {"free": 3.0}, "need 0 <= free < worst, not 3.0 and 3.0"),
        ("gate", {"repeated": 20}, r"repeated in \[0, 1\], not 4 and 20"),
        ("sample_support", {"min_samples": 9}, "1 <= min_samples <= samples, not 8 and 9"),
        ("claim_check", {"max_claims": 0}, "need max_claims >= 1, not 0"),
    ],
)
def test_a_wrong_parameter_is_one_sentence(name, parameters, message):
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        make(name, parameters)
