"""The contract, for every file in rewards/: what it declares, and what it scores on scenes."""

import ast
import inspect
import math
import re
from dataclasses import replace

import pytest
import torch

import rewards
from experiments.embedded.web import salient
from rewards import Bank
from rewards.lib.images import image_hash
from vizer_rl.config.load import load_run
from vizer_rl.data import scenes as draw
from vizer_rl.policy import captioner, load
from vizer_rl.scoring.clip import Encoders
from vizer_rl.scoring.reward_functions import Reward, RewardFunctions

from ..conftest import REPO
from ..stubs import Answering

PARAMETERS = {  # those that a reward cannot do without, and what halves the time
    "sample_support": {"samples": 4},
    "contains": {"trigger": "ohwx", "words": ["drawing"], "forbidden": ["a photo of"]},
    "vocabulary": {"words": ["circle", "square", "star", "red", "blue"]},
}
COUNT = 72
ALL_REWARDS = pytest.mark.parametrize("name", rewards.names())


@ALL_REWARDS
def test_it_says_what_it_is_and_declares_what_it_does(name):
    module, matches = rewards.load_module(name), rewards.find(name)
    assert module.__doc__
    assert rewards.cost(name), 'the module\'s docstring has a sentence that begins with "Cost:"'
    assert matches.__doc__.strip().splitlines()[0].endswith((".", "?"))
    assert "vizer_rl" not in vars(module)
    assert 0 < module.RATE <= 1
    reward = rewards.make(name, PARAMETERS.get(name, {}))
    low, high = reward.range
    assert low < high
    assert set(reward.reads) <= {"image", "text", "policy"}
    for declared in ("groups", "content", "gates"):
        assert isinstance(getattr(reward, declared, False), bool)


@ALL_REWARDS
def test_every_parameter_is_typed_named_and_explained(name):
    matches = rewards.find(name)
    if matches.__init__ is object.__init__:
        return
    for key, parameter in inspect.signature(matches, eval_str=True).parameters.items():
        assert parameter.kind is parameter.KEYWORD_ONLY, key
        assert parameter.annotation is not parameter.empty, key
        assert f"`{key}`" in matches.__init__.__doc__, f"{key} is not explained"


@ALL_REWARDS
def test_it_is_one_short_file(name):
    text = (REPO / "rewards" / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 120
    assert not re.search(r"^(from|import) vizer_rl", text, re.MULTILINE)
    called = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    assert "check" in [f.name for f in called]


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """COUNT scenes with captions that the frozen policy sampled for them, and the true ones."""
    run = load_run(REPO / "experiments/smolvlm.yaml", ["profile=scenes"])
    model, processor = load.load_policy("smolvlm", "embedded", dtype="float32")
    torch.manual_seed(0)
    drawn = [draw.sample(3_000_000 + k) for k in range(COUNT)]
    images = [draw.render(s) for s in drawn]
    scenes = [salient(s) for s in drawn]  # told in the order in which these policies tell them
    message = captioner.caption(
        model, processor, images, run.data.prompt, max_new_tokens=32, temperature=1.0
    )
    reference = Answering(model, processor, "embedded", instruct=True, max_new_tokens=32)
    reference.truth = {image_hash(i): s.caption for i, s in zip(images, scenes, strict=True)}
    encoders = Encoders("embedded:a", torch.device("cpu"), torch.float32)
    eos = load.eos_ids(model, processor)
    scoring = RewardFunctions([], encoders, reference, eos, 8, run.data.prompt)
    ids = [str(k) for k in range(COUNT)]
    sample = scoring.batch(ids, images, [c.text for c in message], [c.ids for c in message])
    return Bank(ids, images, sample, tmp_path_factory.mktemp("cache")), scenes


@pytest.fixture(scope="module")
def prepared(bank):
    """Each reward, prepared once."""
    built = {}

    def get(name):
        if name not in built:
            built[name] = rewards.make(name, PARAMETERS.get(name, {}))
            if hasattr(built[name], "prepare"):
                built[name].prepare(bank[0])
        return built[name]

    return get


@ALL_REWARDS
def test_a_matched_caption_beats_a_mismatched_one(name, bank, prepared):
    stored, scenes = bank
    captions = [s.caption for s in scenes]
    right = replace(stored.sample, captions=captions)
    wrong = replace(stored.sample, captions=[*captions[1:], captions[0]])
    module = rewards.load_module(name)
    assert module.check(prepared(name), right, wrong) >= module.RATE


@ALL_REWARDS
def test_scores_lie_in_the_range_and_the_same_caption_gets_the_same_score(name, bank, prepared):
    reward, sample = prepared(name), bank[0].sample
    low, high = reward.range
    scores = list(reward(sample))
    assert all(s is None or low - 1e-6 <= s <= high + 1e-6 for s in scores)
    again = list(reward(sample))
    pairs = zip(scores, again, strict=True)
    assert all(a == b or math.isclose(a, b, abs_tol=1e-5) for a, b in pairs)


@ALL_REWARDS
def test_captions_of_zero_tokens_and_odd_ones_are_scored_like_any_other(name, bank, prepared):
    sample = bank[0].sample
    odd = ["", " ", ".", "🙂", "a " * 300, "A dog. " * 60, "<|im_end|>"]
    subset = replace(
        sample,
        image_ids=sample.image_ids[: len(odd)],
        images=sample.images[: len(odd)],
        captions=odd,
        completion_ids=[[] for _ in odd],
        groups=[range(k, k + 1) for k in range(len(odd))],
        ended=[True] * len(odd),
    )
    reward = prepared(name)
    judges = [Reward(name, 1.0, reward), Reward("end", 1.0, rewards.make("ended", {}))]
    adapter = RewardFunctions(judges, sample.encoders, sample.policy, [0], 1)
    low, high = reward.range
    scores = adapter.scores(subset)[name]
    assert all(s is None or low - 1e-6 <= s <= high + 1e-6 for s in scores)
    cut = adapter.scores(replace(subset, ended=[False] * len(odd)))
    assert cut["end"] == [-1.0] * len(odd)
    assert (cut[name] == [None] * len(odd)) == judges[0].content


@ALL_REWARDS
def test_its_parts_are_one_list_for_each_caption_and_its_notes_are_numbers(name, bank, prepared):
    reward, sample = prepared(name), bank[0].sample
    if hasattr(reward, "parts"):
        result = reward.parts(sample)
        assert len(result) == len(sample.captions)
        for what, score in (part for subset in result for part in subset):
            assert isinstance(what, str)
            assert math.isfinite(score)
    if hasattr(reward, "notes"):
        reward(sample)
        assert all(math.isfinite(value) for value in reward.notes().values())
