"""Each family, tiny and random: caption, two steps of an algorithm, save, load; packed or not."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from packaging import version
from PIL import Image
from rich.console import Console

from rewards import find
from vizer_rl.algorithms import ALGORITHMS
from vizer_rl.algorithms.trl_forward import forward_arguments
from vizer_rl.config.load import load_run
from vizer_rl.errors import UserError
from vizer_rl.evaluation.run_policy import RunPolicy
from vizer_rl.policy.captioner import caption
from vizer_rl.policy.chat import chat_text, messages
from vizer_rl.policy.families import FAMILIES, misfit
from vizer_rl.policy.load import load_policy, load_processor
from vizer_rl.policy.lora import load_adapter
from vizer_rl.policy.shared_prefix.obstacles import build_vision_cache, packing_difference
from vizer_rl.policy.shared_prefix.vision_cache import VisionCache
from vizer_rl.policy.vision import process_images, tower_inputs
from vizer_rl.scoring.reference_policy import ReferencePolicy
from vizer_rl.training import assemble
from vizer_rl.training.estimate import Machine, estimate
from vizer_rl.training.export_base import base_of, base_settings
from vizer_rl.training.export_parity import check_parity, plain_outputs, run_outputs
from vizer_rl.training.export_weights import write_adapter, write_merged, write_processor
from vizer_rl.training.splits import image_sets

from .. import tiny_families
from ..conftest import REPO

PROMPT = "Describe the image."
SETTINGS = [
    "profile=scenes",
    "data.heldout=2",
    "monitor.images=2",
    "tracking.wandb=off",
    "recipe=null",  # a base of random weights has no words to be sure of
    "train.max_steps=2",
    "train.warmup_steps=0",
    "train.learning_rate=0.01",
    "train.num_generations=2",
    "train.per_device_train_batch_size=4",
    "train.max_completion_length=8",
    "rewards.self_retrieval.hard=4",
    "rewards.self_retrieval.random=4",
    "rewards.alignment.steps=5",
]
CAPTIONS = ["a red dog on the grass", "two people"]
NEW = version.parse(transformers.__version__) >= version.parse("5.18")  # takes image features
ONLY_NEW = pytest.mark.skipif(not NEW, reason="transformers before 5.18 takes no image features")
ORDER = sorted(ALGORITHMS)
NAMES = sorted(tiny_families.BUILDERS)  # a family's, or its base model's
DEFAULT = {name: ORDER[n % len(ORDER)] for n, name in enumerate(NAMES)}


@pytest.fixture(scope="module", autouse=True)
def processors():
    """SmolVLM2's processor without the package that it writes numbers with."""
    with pytest.MonkeyPatch.context() as patch:
        tiny_families.without_num2words(patch)
        yield


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The folder of a family's checkpoint, written once."""
    folder = tmp_path_factory.mktemp("families")

    def checkpoint(family):
        path = folder / family
        if not path.exists():
            tiny_families.write(family, path)
        return str(path)

    return checkpoint


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images of noise, broad, upright and square."""
    folder = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(noise(26)):
        image.save(folder / f"{number}.png")
    return folder


def noise(count):
    make = torch.Generator().manual_seed(7)
    sizes = [(112, 56), (56, 120), (64, 64)]
    return [
        Image.fromarray(torch.randint(0, 256, (h, w, 3), generator=make, dtype=torch.uint8).numpy())
        for n in range(count)
        for w, h in [sizes[n % 3]]
    ]


def run_of(family, algorithm, model, photos, *more):
    """The settings of a run of two steps."""
    names = [f"family={family}", f"algorithm={algorithm}", f"policy.model={model}"]
    more = [*more, "mapper.steps=5"] if algorithm == "vizer" else more
    settings = [*names, f"data.images={photos}", f"name={family}", *SETTINGS, *more]
    return load_run(REPO / "experiments" / "smolvlm.yaml", settings)


def trained(family, algorithm, model, photos, monkeypatch, tmp_path, *more):
    """The trainer after two steps through the parts of a run, and what the run says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rewards.lib.mapper.COLLAPSED", 0.0)  # five updates of random states
    run = run_of(family, algorithm, model, photos, *more)
    images = image_sets(run, Console(quiet=True))[0]
    rewards = assemble.make_rewards(run)
    args = assemble.make_arguments(run, rewards, len(images.ids))
    sentences = []
    components, _ = assemble.load_parts(
        run, args, rewards, images, sentences.append, sentences.append
    )
    trainer = assemble.make_trainer(run, components, args, images, Console(quiet=True))
    trainer.train()
    return trainer, sentences


def captions_of(model, processor, **more):
    lengths = {"max_new_tokens": 6, "min_new_tokens": 4}
    found = caption(model, processor, noise(3), PROMPT, **lengths, **more)
    return [c.ids for c in found]


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        pytest.param(n, a, marks=[] if a == DEFAULT[n] else pytest.mark.slow)
        for n in NAMES
        for a in ORDER
    ],
)
def test_captions_two_steps_saved_and_loaded(
    name, algorithm, checkpoints, photos, monkeypatch, tmp_path
):
    model, family = checkpoints(name), name.removesuffix("_base")
    trainer, sentences = trained(family, algorithm, model, photos, monkeypatch, tmp_path)
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["step"] for row in logs] == [1, 2]
    learnt = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert len([n for n in learnt if ".critic." not in n]) == 2 * 7 * 2  # A and B, 7 in a layer
    assert not [n for n in learnt if re.search("vis|connector|projector", n)]
    by_rows = any("one row per caption" in sentence for sentence in sentences)
    assert by_rows is not (FAMILIES[family].shared_prefix and NEW)
    trainer.model.save_pretrained("adapter")
    base, processor = load_policy(family, model)
    before = captions_of(base, processor)
    loaded = load_adapter(base, Path("adapter"))
    own = {n: p for n, p in trainer.model.state_dict().items() if "lora_" in n}
    again = {n: p for n, p in loaded.state_dict().items() if "lora_" in n}
    assert all(torch.equal(own[n], p) for n, p in again.items())
    assert any(p.abs().sum() > 0 for n, p in again.items() if "lora_B" in n), logs
    trainer.model.eval()
    after = captions_of(loaded, processor)
    assert after == captions_of(trainer.model, processor)
    assert all(before)
    run = run_of(family, algorithm, model, photos)
    check_export(run, loaded, processor, Path("adapter"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(f for f, e in FAMILIES.items() if e.shared_prefix))
def test_stock_rows_train_too(family, checkpoints, photos, monkeypatch, tmp_path):
    stock = "engine.shared_prefix=off"
    model = checkpoints(family)
    trainer, _ = trained(family, "grpo", model, photos, monkeypatch, tmp_path, stock)
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["step"] for row in logs] == [1, 2]
    assert all(row["kl"] < 1 for row in logs[:1])


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_memory_is_estimated(family, checkpoints, photos, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run = run_of(family, "grpo", checkpoints(family), photos)
    model, work = estimate(run, Machine(2**40, 0, 1.0, torch.float32))
    result = model.estimate(work)
    assert work.image_tokens > 0
    assert all(sum(parts.values()) > 0 for parts in result.phases.values())


def check_export(run, adapted, processor, adapter, folder):
    """Adapter and merged weights answer as the run: the steps of `vizer-rl export`."""
    policy = RunPolicy.__new__(RunPolicy)  # what a run directory would give
    policy.run, policy.model, policy.processor, policy.vision_cache = run, adapted, processor, None
    images = noise(2)
    before, dtype = run_outputs(policy, images), torch.float32
    base = base_of(run)
    settings = base_settings(run, processor, dtype)
    for kind in ("adapter", "merged"):
        part = folder / f"exported-{kind}"
        part.mkdir()
        write_processor(policy, part)
        if kind == "adapter":
            write_adapter(base, adapter, part)
            after = plain_outputs(part, base.load_path(part), dtype, before, settings)
        else:
            write_merged(policy, part)
            after = plain_outputs(part, None, dtype, before, {})
        assert check_parity(before, after, dtype).images == len(images)


@ONLY_NEW
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_packed_rows_fit_where_the_entry_says_so_and_nowhere_else(family, checkpoints):
    model, processor = load_policy(family, checkpoints(family))
    difference = packing_difference(VisionCache(model, processor, FAMILIES[family]))
    assert (difference < 1e-4) is FAMILIES[family].shared_prefix
    assert difference < 1e-4 or difference > 1e-2


@pytest.mark.parametrize("family", sorted(f for f, e in FAMILIES.items() if e.shared_prefix))
def test_captions_behind_a_shared_prefix_are_those_of_generate(family, checkpoints):
    model, processor = load_policy(family, checkpoints(family))
    cache = build_vision_cache(model, processor, family)
    assert (cache is not None) is NEW
    shared = captions_of(model, processor, vision_cache=cache)
    assert shared == captions_of(model, processor)
    assert len({tuple(ids) for ids in shared}) > 1


@ONLY_NEW
def test_a_model_that_does_not_fit_is_computed_row_by_row_and_says_so(checkpoints, monkeypatch):
    model, processor = load_policy("qwen3vl", checkpoints("qwen3vl"))
    monkeypatch.setattr(
        "vizer_rl.policy.vision.SimpleNamespace",  # features of deeper layers get lost
        lambda pooler_output, deepstack_features: SimpleNamespace(
            pooler_output=pooler_output, deepstack_features=[]
        ),
    )
    sentences = []
    assert build_vision_cache(model, processor, "qwen3vl", report=sentences.append) is None
    assert re.fullmatch(
        r"one row per caption, as TRL does it: captions packed behind one prompt differ by \S+ nats"
        r" a token from a row each",
        sentences[0],
    )


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_reference_reads_captions_as_the_whole_model_does(family, checkpoints):
    model, processor = load_policy(family, checkpoints(family))
    reference = ReferencePolicy(model, processor, "x-it-Instruct", prompt=PROMPT)
    images, text = noise(2), chat_text(processor, messages(PROMPT))
    own = reference.log_probs(CAPTIONS, images)
    for image, words, logps in zip(images, CAPTIONS, own, strict=True):
        (inputs,) = process_images(processor, [image], [text])
        tokens = torch.tensor(reference.token_ids(words))
        ids = torch.cat([inputs["ids"], tokens])[None]
        types = FAMILIES[family].token_types
        kinds = {types: (ids == model.config.image_token_id).int()} if types else {}
        with torch.no_grad():
            logits = model(input_ids=ids, **tower_inputs(inputs, model.device), **kinds).logits
        expected = logits[0, -len(tokens) - 1 : -1].log_softmax(-1).gather(-1, tokens[:, None])
        torch.testing.assert_close(logps, expected[:, 0], atol=2e-5, rtol=1e-4)
    blank = reference.log_probs(CAPTIONS, images, "blank")
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(own, blank, strict=True))
    assert len(reference.log_probs(CAPTIONS, view="text")) == 2


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_claims_are_put_to_the_policy_and_images_have_features(family, checkpoints):
    model, processor = load_policy(family, checkpoints(family))
    reference = ReferencePolicy(model, processor, "x-it-Instruct", prompt=PROMPT)
    assert reference.instruct
    images = noise(3)
    batch = SimpleNamespace(
        policy=reference,
        captions=["a red dog", "a blue cat", "two people"],
        image_ids=["0", "1", "2"],
        images=images,
    )
    scores = find("claim_check")(step=1e-6)(batch)
    assert all(-1 < score < 1 for score in scores)
    assert any(scores)
    features = reference.image_features(["0", "1", "2"], images)
    assert features.shape == (3, tiny_families.WIDTH)
    assert (features[0] - features[1]).abs().max() > 1e-4


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("splitting", [False, True])
def test_images_take_the_tokens_that_their_rule_counts(family, splitting, checkpoints):
    processor, _ = load_processor(family, checkpoints(family), image_splitting=splitting)
    rule, token = FAMILIES[family].images, processor.tokenizer
    image_id = getattr(token, "image_token_id", None) or processor.image_token_id
    largest = rule.maximum(processor, 10_000)
    for width, height in [(64, 64), (120, 50), (40, 300), (500, 500), (56, 56)]:
        (row,) = process_images(
            processor, [Image.new("RGB", (width, height))], [str(processor.image_token)]
        )
        count = int((row["ids"] == image_id).sum())
        assert count == rule.of_image(processor, height, width)
        assert count <= largest


@pytest.mark.parametrize("family", sorted({"internvl", "llava_onevision", "gemma3"}))
def test_a_budget_of_image_tokens_is_kept_or_refused(family, checkpoints):
    folder = checkpoints(family)
    smallest = {"internvl": 4, "llava_onevision": 36, "gemma3": 4}[family]
    with pytest.raises(UserError, match=f"at least {smallest}, the tokens of one "):
        load_processor(family, folder, max_image_tokens=smallest - 1)
    budget = 16 if family != "llava_onevision" else 60
    processor, _ = load_processor(family, folder, image_splitting=True, max_image_tokens=budget)
    rule = FAMILIES[family].images
    sizes = [(64, 64), (120, 50), (40, 300), (500, 500), (56, 112)]
    counts = [rule.of_image(processor, h, w) for w, h in sizes]
    assert max(counts) <= budget
    assert family == "gemma3" or max(counts) > smallest


def test_trls_arguments_fit_its_forward_and_the_rows(checkpoints):
    model, _ = load_policy("gemma3", checkpoints("gemma3"))
    image = model.config.image_token_id
    ids = torch.tensor([[5, image, image, 9, 11, 12]])
    shifted = torch.tensor([[0, 0, 1, 1, 0, 0, 0]])  # with a second BOS
    kwargs = {"pixel_values": "x", "token_type_ids": shifted, "batch_num_images": [1]}
    fitting = forward_arguments(model, ids, kwargs)
    assert fitting["token_type_ids"].tolist() == [[0, 1, 1, 0, 0, 0]]
    assert fitting.keys() == {"pixel_values", "token_type_ids"}
    assert forward_arguments(model, ids, {"token_type_ids": None}) == {"token_type_ids": None}


def test_a_model_of_another_or_no_family_is_told_what_to_do():
    assert misfit("idefics3", "smolvlm") == ""
    assert misfit("qwen2_5_vl", "smolvlm") == (
        "is a qwen2_5_vl model, but family 'smolvlm' takes idefics3 or smolvlm; "
        "set family=qwen2_5vl"
    )
    assert misfit("llava_next", "qwen2vl") == (
        "is a llava_next model, but family 'qwen2vl' takes qwen2_vl; no family takes it: an entry "
        "in vizer_rl/policy/families.py names its vision modules, LoRA's modules, what ends a "
        "caption and how an image becomes tokens, like that of llava_onevision"
    )
    assert misfit("bert", "qwen2vl").endswith("how an image becomes tokens")
