"""The maths of clip_similarity, self_retrieval and the guards by hand."""

import math

import pytest
import torch

from rewards import Bank, CaptionBatch, make

from ..stubs import Stub, batch, words


def test_clip_similarity_is_the_cosine_in_steps():
    stub = Stub(
        {"x": [1.0, 0.0]}, {"same": [1.0, 0.0], "half": [1.0, math.sqrt(3.0)], "no": [0.0, 1.0]}
    )
    result = batch(stub, [("x", "same"), ("x", "half"), ("x", "no")])
    assert list(make("clip_similarity", {})(result)) == pytest.approx([1.0, 0.5, 0.0])
    coarse = make("clip_similarity", {"step": 0.4})
    assert list(coarse(result)) == pytest.approx([0.8, 0.4, 0.0])


def test_a_caption_past_the_context_is_the_mean_of_its_sentences():
    first, second = "a dog lies on the green grass.", "a cat sits on the old wall."
    endless = "one two three four five six seven eight nine ten."
    texts = {first: [1.0, 0.0], second: [0.0, 1.0], endless: [1.0, 0.0]}
    result = batch(Stub({"x": [1.0, 0.0]}, texts), [("x", f"{first} {second}"), ("x", endless)])
    reward = make("clip_similarity", {})
    assert list(reward(result)) == pytest.approx([0.5, 1.0])
    assert reward.parts(result) == [[(first, 1.0), (second, 0.0)], [(endless, 1.0)]]
    assert reward.notes() == {"cut": 0.5}  # the endless one is a single sentence
    assert reward.notes() == {"cut": 0.0}


def axes(n):
    eye = torch.eye(n).tolist()
    return {f"i{k}": eye[k] for k in range(n)}, {f"c{k}": eye[k] for k in range(n)}


def test_self_retrieval_is_a_log_softmax_calibrated_and_floored():
    images, texts = axes(6)
    stub = Stub(images, texts)
    reward = make("self_retrieval", {"hard": 4, "random": 1, "step": 1e-6, "floor": -6.0})
    sample = batch(stub, [(f"i{k}", f"c{k}") for k in range(6)])
    reward.prepare(Bank(list(images), [None] * 6, sample, None))
    reward.scale = 2.0
    # the negatives are orthogonal to the caption; where the random one is the image itself it
    # is no negative, so 4 or 5 of them count e^0 against e^2
    result = [math.log(math.e**2 / (math.e**2 + n)) for n in (4, 5)]
    for value in reward(sample):
        assert min(abs(value - t) for t in result) < 1e-4
    reward.scale = 50.0
    wrong = [reward(batch(stub, [("i0", f"c{k}")]))[0] for k in range(1, 6)]
    assert wrong.count(pytest.approx(-6.0)) >= 4  # -50 nats, but for the one that is no negative


def test_self_retrieval_is_calibrated_to_the_probability_asked_for():
    torch.manual_seed(0)
    vectors = torch.randn(40, 8)
    images = {f"i{k}": vectors[k].tolist() for k in range(40)}
    texts = {f"c{k}": (vectors[k] + 0.8 * torch.randn(8)).tolist() for k in range(40)}
    stub = Stub(images, texts)
    sample = batch(stub, [(f"i{k}", f"c{k}") for k in range(40)])
    for wanted in (0.3, 0.6):
        reward = make(
            "self_retrieval", {"hard": 8, "random": 8, "base_probability": wanted, "step": 1e-6}
        )
        reward.prepare(Bank(list(images), [None] * 40, sample, None))
        matches = torch.tensor(reward(sample)).exp().mean().item()
        assert matches == pytest.approx(wanted, abs=0.02)


def test_self_retrieval_needs_a_bank_and_enough_of_it():
    images, texts = axes(4)
    stub = Stub(images, texts)
    result = batch(stub, [("i0", "c0")])
    with pytest.raises(RuntimeError, match="not prepared"):
        make("self_retrieval", {})(result)
    with pytest.raises(ValueError, match="4 training images are too few to retrieve one among 64"):
        make("self_retrieval", {}).prepare(Bank(list(images), [None] * 4, result, None))


def random_bank(count):
    torch.manual_seed(0)
    vectors = torch.randn(count, 8)
    images = {f"i{k}": vectors[k].tolist() for k in range(count)}
    texts = {f"c{k}": (vectors[k] + 0.8 * torch.randn(8)).tolist() for k in range(count)}
    sample = batch(Stub(images, texts), [(f"i{k}", f"c{k}") for k in range(count)])
    return Bank(list(images), [None] * count, sample, None)


@pytest.mark.parametrize(
    ("count", "parameters", "negatives"),
    [(54, {}, (26, 27)), (54, {"hard": 50, "random": 10}, (44, 9)), (16, {"random": 0}, (15, 0))],
)
def test_the_negatives_are_fitted_to_a_small_bank_which_is_said(count, parameters, negatives):
    bank, reward = random_bank(count), make("self_retrieval", parameters)
    sentence = reward.prepare(bank)
    assert (reward.num_hard, reward.num_random) == negatives
    assert sentence == (
        f"{negatives[0]} hard and {negatives[1]} random negatives instead of {reward.hard} and "
        f"{reward.random}, for there are only {count} training images"
    )
    assert reward._cosines(bank.sample)[0].shape == (count, count)
    assert reward.notes()["base_probability"] == pytest.approx(0.45, abs=0.02)
    assert all(-6 <= score <= 0 for score in reward(bank.sample))
    assert reward.prepare(random_bank(200)) is None, "a larger bank holds all of them"
    assert (reward.num_hard, reward.num_random) == (reward.hard, reward.random)


def test_self_retrieval_refuses_a_bank_of_fewer_than_16_but_not_negatives_that_it_holds():
    with pytest.raises(ValueError, match=r"15 training images .* give 16 to train on, or leave"):
        make("self_retrieval", {}).prepare(random_bank(15))
    assert make("self_retrieval", {"hard": 3, "random": 3}).prepare(random_bank(7)) is None


@pytest.mark.parametrize(
    ("caption", "n", "share"),
    [
        ("a small red circle", 3, 0.0),
        ("a cat a cat a cat", 2, 3 / 5),  # a-cat cat-a a-cat cat-a a-cat: two kinds of five
        ("red red red", 3, 1.0),  # one 3-gram, two doubled words: more than one is one
        ("a small red circle and a small red square", 3, 1 / 7),
        ("a small red circle and a small red square", 5, 0.0),
        ("", 3, 0.0),
        ("cat, cat", 3, 1.0),
    ],
)
def test_repetition_by_hand(caption, n, share):
    assert make("repetition", {"n": n})(words(caption)) == [pytest.approx(-share)]


@pytest.mark.parametrize(
    ("count", "value"), [(0, -1.0), (1, -2 / 3), (3, 0.0), (10, 0.0), (15, -0.5), (40, -1.0)]
)
def test_length_by_hand(count, value):
    reward = make("length", {"shortest": 3, "longest": 10})
    assert reward(words(" ".join(["w"] * count))) == [pytest.approx(value)]


def test_random_knows_nothing_and_repeats_itself():
    result = words(*[f"caption {k}" for k in range(400)])
    reward = make("random", {})
    scores = reward(result)
    assert scores == reward(result)
    assert 0.4 < sum(scores) / 400 < 0.6


def test_self_retrieval_tells_what_a_caption_is_taken_for():
    stub = Stub(*axes(4))
    stub.texts["both"] = torch.tensor([1.0, 1.0, 0.0, 0.0]) / math.sqrt(2)
    reward = make("self_retrieval", {"hard": 3, "random": 0})
    result = batch(stub, [("i0", "both")])
    reward.prepare(Bank(list(stub.images), [None] * 4, result, None))
    reward.scale = math.sqrt(2)  # logits 1 for both, 0 for the other two
    ((right, wrong),) = reward.parts(result)
    half = math.e / (2 * math.e + 2)
    assert right == ("this image", pytest.approx(half))
    assert wrong == ("i1", pytest.approx(half))


def test_another_encoder_picks_the_hard_negatives_and_drops_its_doubles():
    stub = Stub(*axes(6))
    # The policy sees i0 and i1 as one image, i2 and i3 as alike, i4 and i5 as alike.
    vectors = [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0.5], [0, 0, 1], [0, 0.5, 1]]
    tower = Stub({f"i{k}": [float(x) for x in v] for k, v in enumerate(vectors)}, {})
    result = batch(stub, [("i2", "c3"), ("i4", "c5"), ("i0", "c1")])
    result = CaptionBatch(**{**vars(result), "policy": tower})
    reward = make("self_retrieval", {"neighbours": "policy", "hard": 1, "random": 0})
    reward.prepare(Bank(list(stub.images), [None] * 6, result, None))
    names = [parts[1][0] for parts in reward.parts(result)]
    assert names[:2] == ["i3", "i5"]
    assert names[2] != "i1"


def test_a_weak_scorer_is_calibrated_to_the_likeliest_scale_not_to_the_highest_probability():
    angles = {"i0": 0.0, "i1": 1.0, "i2": 2.0}
    images = {name: [math.cos(a), math.sin(a)] for name, a in angles.items()}
    texts = {name: [math.cos(a), math.sin(a)] for name, a in (("right", 0.0), ("wrong", 2.0))}
    sample = batch(Stub(images, texts), [("i0", "right"), ("i0", "wrong")])
    reward = make("self_retrieval", {"hard": 2, "random": 0, "base_probability": 0.9})
    reward.prepare(Bank(list(images), [None] * 3, sample, None))
    # cosines 1, cos 1, cos 2 of the right caption, cos 2, cos 1, 1 of the wrong one: a scale near
    # zero is the likeliest, a large one has the highest mean probability, a half
    assert reward.scale == pytest.approx(0.1)
    assert reward.notes()["base_probability"] == pytest.approx(1 / 3, abs=0.01)
    assert min(reward(sample)) > -1.3


def test_the_calibration_takes_the_nearest_where_the_probability_is_out_of_reach():
    images, texts = axes(4)
    stub = Stub(images, texts)
    wrong = batch(stub, [(f"i{k}", f"c{(k + 1) % 4}") for k in range(4)])
    reward = make("self_retrieval", {"hard": 3, "random": 0})
    reward.prepare(Bank(list(images), [None] * 4, wrong, None))
    assert reward.scale == pytest.approx(0.1)  # the flattest: every larger one is surer and wrong
    assert reward.notes()["base_probability"] == pytest.approx(1 / (3 + math.exp(0.1)), abs=1e-4)
