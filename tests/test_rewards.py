"""Rewards: their maths by hand, their contract for every file in rewards/, their errors."""

import math
from dataclasses import replace

import pytest
import torch

import rewards
from rewards import Bank, CaptionBatch, make, win_rate
from vizer_rl.scoring import Reward, RewardError, Scoring

EOS = 9


class Stub:
    """An encoder whose vectors are given by hand, and a policy that borrows them."""

    name, context_length, key = "stub", 8, "stub"

    def __init__(self, images, texts):
        self.images = {
            k: torch.nn.functional.normalize(torch.tensor(v), dim=0) for k, v in images.items()
        }
        self.texts = {
            k: torch.nn.functional.normalize(torch.tensor(v), dim=0) for k, v in texts.items()
        }

    def image_features(self, ids, images):
        return torch.stack([self.images[i] for i in ids])

    def text_features(self, captions):
        return torch.stack([self.texts[c] for c in captions])

    caption_states = text_features


def batch(stub, pairs):
    return CaptionBatch(
        image_ids=[i for i, _ in pairs],
        images=[None] * len(pairs),
        captions=[c for _, c in pairs],
        groups=[range(len(pairs))],
        completion_ids=[[1, EOS]] * len(pairs),
        encoders=lambda name: stub,
        policy=stub,
    )


def words(*captions):
    return batch(None, [("x", c) for c in captions])


def test_clip_similarity_is_the_cosine_in_steps():
    stub = Stub(
        {"x": [1.0, 0.0]}, {"same": [1.0, 0.0], "half": [1.0, math.sqrt(3.0)], "no": [0.0, 1.0]}
    )
    told = batch(stub, [("x", "same"), ("x", "half"), ("x", "no")])
    assert list(make("clip_similarity", {})(told)) == pytest.approx([1.0, 0.5, 0.0])
    coarse = make("clip_similarity", {"step": 0.4})
    assert list(coarse(told)) == pytest.approx([0.8, 0.4, 0.0])


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
    told = [math.log(math.e**2 / (math.e**2 + n)) for n in (4, 5)]
    for value in reward(sample):
        assert min(abs(value - t) for t in told) < 1e-4
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
        found = torch.tensor(reward(sample)).exp().mean().item()
        assert found == pytest.approx(wanted, abs=0.02)


def test_self_retrieval_needs_a_bank_and_enough_of_it():
    images, texts = axes(4)
    stub = Stub(images, texts)
    told = batch(stub, [("i0", "c0")])
    with pytest.raises(RuntimeError, match="not prepared"):
        make("self_retrieval", {})(told)
    with pytest.raises(ValueError, match="only 4 training images"):
        make("self_retrieval", {}).prepare(Bank(list(images), [None] * 4, told, None))


def test_alignment_learns_to_match_and_reuses_its_cache(tmp_path, monkeypatch):
    torch.manual_seed(0)
    vectors, turn = torch.randn(60, 6), torch.randn(6, 6)
    stub = Stub(
        {f"i{k}": vectors[k].tolist() for k in range(60)},
        {f"c{k}": (vectors[k] @ turn).tolist() for k in range(60)},
    )
    sample = batch(stub, [(f"i{k}", f"c{k}") for k in range(60)])
    bank = Bank(sample.image_ids, sample.images, sample, tmp_path)
    reward = make("alignment", {})
    reward.prepare(bank)
    wrong = replace(sample, captions=[*sample.captions[1:], sample.captions[0]])
    assert win_rate(reward, sample, wrong) > 0.9
    again = make("alignment", {})
    monkeypatch.setattr(again, "fit", lambda *_: pytest.fail("the mapper was trained twice"))
    again.prepare(bank)
    assert list(again(sample)) == list(reward(sample))


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
    told = words(*[f"caption {k}" for k in range(400)])
    reward = make("random", {})
    scores = reward(told)
    assert scores == reward(told)
    assert 0.4 < sum(scores) / 400 < 0.6


@pytest.mark.parametrize("name", rewards.names())
def test_every_reward_file_keeps_the_contract(name):
    module = rewards.load_module(name)
    found = rewards.find(name)
    assert module.__doc__, "a reward says what it is, where it is from and what it costs"
    assert "ost" in module.__doc__
    assert found.__doc__
    assert "vizer_rl" not in vars(module)
    assert 0 < module.RATE <= 1
    assert callable(module.check)
    reward = make(name, {})
    low, high = reward.range
    assert low <= reward.floor < high


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("self_retreival", ["unknown reward", "'self_retrieval'", "clip_similarity"]),
        ("nowhere.module.Reward", ["no module 'nowhere'"]),
        ("missing/file.py", ["missing/file.py", "does not exist"]),
        ("rewards.length.Short", ["has no 'Short'"]),
    ],
)
def test_an_unknown_reward_is_one_sentence(name, words):
    with pytest.raises(ValueError, match="reward") as caught:
        rewards.find(name)
    assert all(w in str(caught.value) for w in words)


def test_a_reward_may_be_a_function_in_a_file_anywhere(tmp_path):
    path = tmp_path / "brevity.py"
    path.write_text("def brevity(batch):\n    return [-float(len(c)) for c in batch.captions]\n")
    assert make(str(path), {})(words("ab", "abc")) == [-2.0, -3.0]
    path.write_text("class A:\n    pass\nclass B:\n    pass\n")
    with pytest.raises(ValueError, match="one public class"):
        rewards.find(str(path))


def scoring(score, **attributes):
    for key, value in attributes.items():
        setattr(score, key, value)
    return Scoring([Reward("mine", 1.0, score)], lambda n: None, None, [EOS], 2)


def ask(adapter, ids=((1, EOS), (1, EOS))):
    (function,) = adapter.functions()
    return function(
        completions=[
            [{"role": "assistant", "content": " one"}],
            [{"role": "assistant", "content": "two"}],
        ],
        completion_ids=[list(i) for i in ids],
        image_id=["x", "x"],
        image=[None, None],
        prompts=[],
    )


def test_the_adapter_hands_over_captions_in_groups():
    seen = []

    def score(told):
        seen.append(told)
        return [1.0, None]

    assert ask(scoring(score)) == [1.0, None]
    assert seen[0].captions == ["one", "two"]
    assert seen[0].groups == [range(2)]


def test_a_caption_without_end_gets_the_floor_not_none():
    assert ask(scoring(lambda b: [0.5, None], floor=-3.0), ((1, 2), (1, 2))) == [-3.0, -3.0]
    assert ask(scoring(lambda b: [0.5, 0.6], floor=-3.0), ((1, EOS), ())) == [0.5, -3.0]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([math.nan, 1.0], "nan"),
        ([1.0, math.inf], "inf"),
        ([1.0], "1 scores for 2 captions"),
        (["good", 1.0], "'good'"),
    ],
)
def test_a_broken_reward_stops_the_run_by_name(value, said):
    with pytest.raises(RewardError, match="'mine'") as caught:
        ask(scoring(lambda b: value))
    assert said in str(caught.value)


def test_an_exception_in_a_reward_is_never_a_score():
    def score(told):
        raise KeyError("oops")

    with pytest.raises(RewardError, match=r"'mine' failed.*'x'.*'one'.*oops"):
        ask(scoring(score))
