"""The embedded checkpoints: what their cards promise."""

import json
import re

import pytest
import torch

from experiments.embedded import quality, rows
from experiments.embedded.muon import Muon, orthogonal
from vizer_rl.assets import ASSETS, POLICIES
from vizer_rl.evaluation.metrics.scene_facts.facts import score
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
        assert all(word in text for word in ("data:", "recipe:", "forced_choice"))
        assert re.search(r"training: \d+ s on (a CPU|an H200); ", text)
        assert list((ASSETS / name).glob("*.safetensors"))


@pytest.mark.parametrize("family", sorted(POLICIES))
def test_policies_have_graded_sight_and_say_too_little_by_their_cards(family):
    result = card(family)
    assert set(result["forced_choice"]) == {"shape", "colour", "size", "fill", "relation"}
    assert all(0.70 <= right <= 0.99 for right in result["forced_choice"].values())
    assert result["forced_choice"]["size"] < 0.9 < result["forced_choice"]["shape"]
    assert 0.35 <= result["greedy"]["fact_f1"] <= 0.60
    assert result["greedy"]["hallucination_rate"] >= 0.15
    assert result["greedy"]["mean_length"] < 0.75 * result["greedy"]["true_mean_length"]


@pytest.mark.parametrize("row", rows.PUBLISHED)
@pytest.mark.parametrize(("name", "column"), [("scorer-a", 0), ("scorer-b", 1)])
def test_scorers_are_as_right_as_real_ones_by_their_cards(name, column, row):
    measured = card(name)["rows"][row]
    assert measured["published"] == rows.PUBLISHED[row][column]
    assert abs(measured["accuracy"] - measured["published"]) <= rows.TOLERANCE[row]


def test_a_row_s_false_captions_differ_in_what_it_says_alone():
    for row in rows.ROWS:
        for scene, (true, false) in rows.pairs(row, quality.FIRST, 30):
            assert true not in false
            facts = score(true, scene)
            assert row == "order of five" or (facts.precision == 1 and not facts.hallucinated)
            if row == "order of five":
                assert all(sorted(f.split()) == sorted(true.split()) for f in false)
                assert len({true, *false}) == 5
            elif row in ("objects swapped", "attributes swapped"):
                assert sorted(false[0].split()) == sorted(true.split())
            else:
                assert score(false[0], scene).hallucinated


def test_the_scorers_are_of_different_architecture_seed_and_data():
    from experiments.embedded.build import RECIPES

    a, b = (json.loads((ASSETS / f"scorer-{x}/open_clip_config.json").read_text()) for x in "ab")
    assert isinstance(a["model_cfg"]["vision_cfg"]["layers"], list)  # a ResNet
    assert isinstance(b["model_cfg"]["vision_cfg"]["layers"], int)  # a ViT
    assert RECIPES["scorer-a"][0] != RECIPES["scorer-b"][0]
    assert RECIPES["scorer-a"][1] != RECIPES["scorer-b"][1]


def test_the_cards_are_true_of_the_files():
    judge, result = quality.cosine(OpenClip("embedded:a", CPU)), card("scorer-a")["rows"]
    for row in ("noun replaced", "relation replaced", "false attribute added"):
        assert abs(quality.row_accuracy(judge, row, 100) - result[row]["accuracy"]) < 0.12
    judge = quality.log_probability(*load.load_policy("smolvlm", "embedded", dtype="float32"))
    shares, result = quality.attribute_choice(judge, 60), card("smolvlm")["forced_choice"]
    assert all(abs(shares[k] - result[k]) < 0.12 for k in ("shape", "colour", "size", "fill"))


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


def test_muon_is_torchs_but_for_bfloat16s_rounding():
    torch.manual_seed(0)
    for shape in ((24, 16), (16, 24)):
        ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
        settings = {"lr": 0.1, "weight_decay": 0.02}
        optimizers = [
            Muon([ours], **settings),
            torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **settings),
        ]
        for _ in range(3):
            gradient = torch.randn(shape)
            before = ours.detach().clone()
            for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
                parameter.grad = gradient.clone()
                optimizer.step()
            moved = (ours - before).norm()
            assert (ours - theirs).norm() < 0.02 * moved, "bfloat16 has three digits"
            with torch.no_grad():
                theirs.copy_(ours)


def test_muons_update_has_singular_values_near_one():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(12, 30)))
    assert 0.6 < values.min() <= values.max() < 1.3
