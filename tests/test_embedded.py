"""The embedded checkpoints: what their cards promise, and every reward's self-check on scenes."""

import json
from dataclasses import replace

import pytest
import torch

import rewards
from rewards import Bank
from vizer_rl import policy
from vizer_rl.config import load
from vizer_rl.encoders import Encoders, OpenClip
from vizer_rl.families import ASSETS, FAMILIES
from vizer_rl.frozen import Frozen
from vizer_rl.scenes import draw, quality
from vizer_rl.scoring import Scoring

from .conftest import REPO

CPU = torch.device("cpu")


def card(name):
    return json.loads((ASSETS / name / "CARD.md").read_text().split("```json")[1].split("```")[0])


def test_all_checkpoints_are_small_and_have_cards():
    size = sum(f.stat().st_size for f in ASSETS.rglob("*") if f.is_file())
    assert size < 30 * 2**20
    for name in ("smolvlm", "qwen2vl", "scorer-a", "scorer-b"):
        text = (ASSETS / name / "CARD.md").read_text()
        assert all(word in text for word in ("data:", "recipe:", " s on 2 CPU", "forced_choice"))
        assert list((ASSETS / name).glob("*.safetensors"))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_policies_see_well_and_say_too_little_by_their_cards(family):
    told = card(family)
    for attribute in ("shape", "colour", "size", "fill"):
        assert told["forced_choice"][attribute] >= 0.95
    assert 0.35 <= told["greedy"]["fact_f1"] <= 0.60
    assert told["greedy"]["hallucination_rate"] >= 0.15
    assert told["greedy"]["mean_length"] < 0.75 * told["greedy"]["true_mean_length"]


SHORT = pytest.mark.xfail(strict=True, reason="scorer B reaches .968 on shapes: experiments/LOG.md")


@pytest.mark.parametrize("attribute", ["shape", "colour", "size", "fill"])
@pytest.mark.parametrize("name", ["scorer-a", "scorer-b"])
def test_scorers_tell_a_swapped_attribute_by_their_cards(name, attribute, request):
    if (name, attribute) == ("scorer-b", "shape"):
        request.applymarker(SHORT)
    assert card(name)["forced_choice"][attribute] >= 0.98


@pytest.mark.parametrize("name", ["scorer-a", "scorer-b"])
def test_scorers_tell_presence_by_their_cards(name):
    told = card(name)
    assert told["object_presence"] >= 0.90
    assert "relation" in told["forced_choice"]


def test_the_scorers_are_of_different_architecture_seed_and_data():
    from vizer_rl.scenes.build import RECIPES

    a, b = (json.loads((ASSETS / f"scorer-{x}/open_clip_config.json").read_text()) for x in "ab")
    assert isinstance(a["model_cfg"]["vision_cfg"]["layers"], list)  # a ResNet
    assert isinstance(b["model_cfg"]["vision_cfg"]["layers"], int)  # a ViT
    assert RECIPES["scorer-a"][0] != RECIPES["scorer-b"][0]
    assert RECIPES["scorer-a"][1] != RECIPES["scorer-b"][1]


def test_the_cards_are_true_of_the_files():
    judge = quality.cosine(OpenClip("embedded:a", CPU))
    said, told = quality.attribute_choice(judge, 100), card("scorer-a")["forced_choice"]
    assert all(abs(said[k] - told[k]) < 0.06 for k in ("shape", "colour", "size", "fill"))
    run = load(REPO / "experiments/smolvlm.yaml", ["profile=scenes"])
    judge = quality.log_probability(*policy.load("smolvlm", run.policy))
    said, told = quality.attribute_choice(judge, 60), card("smolvlm")["forced_choice"]
    assert all(abs(said[k] - told[k]) < 0.06 for k in ("shape", "colour", "size", "fill"))


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """160 scenes with captions that the frozen policy sampled for them."""
    run = load(REPO / "experiments/smolvlm.yaml", ["profile=scenes"])
    model, processor = policy.load("smolvlm", run.policy)
    torch.manual_seed(0)
    scenes = [draw.sample(3_000_000 + k) for k in range(160)]
    images = [draw.render(s) for s in scenes]
    said = policy.caption(
        model, processor, images, run.data.prompt, max_new_tokens=32, temperature=1.0
    )
    frozen = Frozen(model, processor, "embedded", max_new_tokens=32)
    eos = policy.eos_ids(model, processor)
    scoring = Scoring([], Encoders("embedded:a", CPU, torch.float32), frozen, eos, 8)
    ids = [str(k) for k in range(160)]
    sample = scoring.batch(ids, images, [c.text for c in said], [c.ids for c in said])
    cache = tmp_path_factory.mktemp("cache")
    return Bank(ids, images, sample, cache), [s.caption for s in scenes]


QUICK = {"sample_support": {"samples": 4}}  # half the time


@pytest.mark.parametrize("name", rewards.names())
def test_a_matched_caption_beats_a_mismatched_one(name, bank):
    known, captions = bank
    reward = rewards.make(name, QUICK.get(name, {}))
    if name == "claim_check":  # its self-check is in test_policy_rewards.py
        with pytest.raises(ValueError, match="not instruction-tuned"):
            reward.prepare(known)
        return
    if hasattr(reward, "prepare"):
        reward.prepare(known)
    right = replace(known.sample, captions=captions)
    wrong = replace(known.sample, captions=[*captions[1:], captions[0]])
    module = rewards.load_module(name)
    assert module.check(reward, right, wrong) >= module.RATE
