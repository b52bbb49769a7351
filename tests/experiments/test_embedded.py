"""The embedded checkpoints: what their cards promise."""

import json

import pytest
import torch

from experiments.embedded import quality
from vizer_rl.assets import ASSETS, POLICIES
from vizer_rl.policy import load
from vizer_rl.scoring.clip import OpenClip

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


@pytest.mark.parametrize("family", sorted(POLICIES))
def test_policies_see_well_and_say_too_little_by_their_cards(family):
    result = card(family)
    for attribute in ("shape", "colour", "size", "fill"):
        assert result["forced_choice"][attribute] >= 0.95
    assert 0.35 <= result["greedy"]["fact_f1"] <= 0.60
    assert result["greedy"]["hallucination_rate"] >= 0.15
    assert result["greedy"]["mean_length"] < 0.75 * result["greedy"]["true_mean_length"]


@pytest.mark.parametrize("attribute", ["shape", "colour", "size", "fill"])
@pytest.mark.parametrize("name", ["scorer-a", "scorer-b"])
def test_scorers_tell_a_swapped_attribute_by_their_cards(name, attribute):
    assert card(name)["forced_choice"][attribute] >= 0.98


@pytest.mark.parametrize("name", ["scorer-a", "scorer-b"])
def test_scorers_tell_presence_by_their_cards(name):
    result = card(name)
    assert result["object_presence"] >= 0.90
    assert "relation" in result["forced_choice"]


def test_the_scorers_are_of_different_architecture_seed_and_data():
    from experiments.embedded.build import RECIPES

    a, b = (json.loads((ASSETS / f"scorer-{x}/open_clip_config.json").read_text()) for x in "ab")
    assert isinstance(a["model_cfg"]["vision_cfg"]["layers"], list)  # a ResNet
    assert isinstance(b["model_cfg"]["vision_cfg"]["layers"], int)  # a ViT
    assert RECIPES["scorer-a"][0] != RECIPES["scorer-b"][0]
    assert RECIPES["scorer-a"][1] != RECIPES["scorer-b"][1]


def test_the_cards_are_true_of_the_files():
    judge = quality.cosine(OpenClip("embedded:a", CPU))
    captions, result = quality.attribute_choice(judge, 100), card("scorer-a")["forced_choice"]
    assert all(abs(captions[k] - result[k]) < 0.06 for k in ("shape", "colour", "size", "fill"))
    judge = quality.log_probability(*load.load_policy("smolvlm", "embedded", dtype="float32"))
    captions, result = quality.attribute_choice(judge, 60), card("smolvlm")["forced_choice"]
    assert all(abs(captions[k] - result[k]) < 0.06 for k in ("shape", "colour", "size", "fill"))


def test_two_rewards_of_a_step_share_one_pass_over_the_captions(monkeypatch):
    scorer, passes = OpenClip("embedded:a", CPU), []
    encode = scorer.model.encode_text
    monkeypatch.setattr(
        scorer.model, "encode_text", lambda *a, **k: passes.append(len(a[0])) or encode(*a, **k)
    )
    captions = ["a red star", "a blue circle", "a red star"]
    first, again = scorer.text_features(captions), scorer.text_features(captions)
    assert torch.equal(first, again)
    assert torch.equal(first[0], first[2])
    assert passes == [2]
    other = scorer.text_features(["a blue circle", "a cross"])
    assert passes == [2, 2]
    assert torch.allclose(other[0], first[1], atol=1e-5)
