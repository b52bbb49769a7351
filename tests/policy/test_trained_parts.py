"""What learns: exactly the parts that policy.train names, beside a start that stays as it was."""

import copy
import functools

import pytest
import torch
from peft import PeftModel, get_peft_model

from vizer_rl.algorithms.whole_parts import split_rates
from vizer_rl.errors import UserError
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.lora import adapter_off, load_adapter, lora_config
from vizer_rl.policy.shared_prefix.packing import add_caption_head, caption_forward, unwrapped
from vizer_rl.policy.shared_prefix.sampler import sample
from vizer_rl.policy.shared_prefix.vision_cache import VisionCache
from vizer_rl.policy.trained_parts import (
    DEFAULT,
    adapter_config,
    copies,
    count_parts,
    keep_in_float32,
    part_of,
)
from vizer_rl.policy.vision import STATES, join_images, process_images, tower_inputs
from vizer_rl.policy.weights_hash import content_key

from .test_sampler import image_prompts
from .test_shared_prefix import load_case

LORA = {"r": 4, "alpha": 8, "dropout": 0.0}
COMBINATIONS = [
    {"connector": "full"},
    {"connector": "lora"},
    {"vision": "lora", "connector": "lora"},
    {"vision": "full", "language": "off"},
    {"connector": "full", "language": "off"},
    {"language": "full"},
    {"vision": "full", "connector": "full", "language": "full"},
]
FAMILY_NAMES = ["smolvlm", "qwen2vl"]
KINDS = [COMBINATIONS[0], COMBINATIONS[2], COMBINATIONS[5]]  # that differ in kind
QUICK = {("smolvlm", 0), ("qwen2vl", 0), ("smolvlm", 2), ("qwen2vl", 2), ("smolvlm", 5)}


def named(combination):
    return "-".join(f"{part}_{how}" for part, how in combination.items())


def cases():
    """Each family with each combination, a few of them in the quick suite."""
    return [
        pytest.param(
            family,
            parts,
            id=f"{family}-{named(parts)}",
            marks=() if (family, number) in QUICK else pytest.mark.slow,
        )
        for family in FAMILY_NAMES
        for number, parts in enumerate(COMBINATIONS)
    ]


@functools.cache
def loaded(family):
    return load_case(family, False)


def base_policy(family):
    """The embedded policy, a copy of its own, and its processor."""
    model, processor = loaded(family)
    return copy.deepcopy(model), processor


def adapted(family, parts, dtype=torch.float32, moved=True):
    """The embedded policy with its adapter, a little away from where it began, and processor."""
    model, processor = base_policy(family)
    model.to(dtype)
    torch.manual_seed(0)
    config = adapter_config(FAMILIES[family], DEFAULT | parts, LORA, lambda: model)
    model = get_peft_model(model, config).eval()
    keep_in_float32(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if moved and p.requires_grad:
                p.add_(0.01 * torch.randn_like(p))
    return model, processor


def inputs_of(model, processor, count=2):
    """Images with their prompts, as a stock model takes them, and the cache's images and texts."""
    images, texts = image_prompts(model, processor, False)
    images, texts = images[:count], texts[:1] * count
    rows = process_images(processor, images, texts)
    return rows, images, texts


def stock_logits(model, row, caption):
    """(T, V) of a caption's tokens, by the model's own forward from pixels."""
    ids = torch.cat([row["ids"], torch.tensor(caption)])[None]
    inputs = join_images([tower_inputs(row, model.device)])
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == unwrapped(model).config.image_token_id).int()
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits[0]
    return logits[-len(caption) - 1 : -1]


def test_the_default_is_lora_as_it_was_and_asks_for_no_model():
    for family in FAMILIES.values():
        for language in ("lora", "qlora"):
            config = adapter_config(family, DEFAULT | {"language": language}, LORA, None)
            assert config == lora_config(family.lora, **LORA)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_weight_is_of_one_part_and_those_named_learn(family):
    model, _ = base_policy(family)
    entry = FAMILIES[family]
    sizes = dict.fromkeys(DEFAULT, 0)
    for name, p in model.named_parameters():
        sizes[part_of(name, entry)] += p.numel()
    connector = model.get_submodule(entry.connector)
    assert sizes["connector"] == sum(p.numel() for p in connector.parameters())
    linear = [m for m in connector.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(sizes.values()) == sum(p.numel() for p in model.parameters())
    for parts in KINDS:
        subject, _ = adapted(family, parts, moved=False)
        counts = {c.part: c for c in count_parts(subject, entry)}
        for part, how in (DEFAULT | parts).items():
            c = counts[part]
            assert c.weights == sizes[part], (parts, part)
            assert c.whole == (sizes[part] if how == "full" else 0), (parts, part)
            assert bool(c.lora) == (how == "lora"), (parts, part)
        assert sum(c.lora + c.whole for c in counts.values()) == sum(
            p.numel() for p in subject.parameters() if p.requires_grad
        )
        if parts.get("connector") == "lora":  # r (in + out) of each linear layer
            hand = sum(LORA["r"] * (m.in_features + m.out_features) for m in linear)
            assert counts["connector"].lora == hand


@pytest.mark.parametrize(("family", "parts"), cases())
def test_packed_log_probs_and_gradients_are_those_of_the_stock_forward(family, parts):
    model, processor = adapted(family, parts)
    rows, images, texts = inputs_of(model, processor)
    prompts = VisionCache(model, processor, FAMILIES[family]).prompts(images, texts)
    captions = [[30, 31, 32], [33, 34], [35, 36, 37, 38]]
    owners = [0, 1, 0]
    learn = [p for p in model.parameters() if p.requires_grad]

    stock = []
    for caption, owner in zip(captions, owners, strict=True):
        logp = stock_logits(model, rows[owner], caption).float().log_softmax(-1)
        stock.append(logp.gather(-1, torch.tensor(caption)[:, None])[:, 0])
    weights = [torch.linspace(1, 2, len(row)) for row in stock]
    total = sum((w * row).sum() for w, row in zip(weights, stock, strict=True))
    expected = torch.autograd.grad(total, learn)

    add_caption_head(model.get_base_model(), 1.0)
    width = max(map(len, captions))
    ids = torch.tensor([c + [0] * (width - len(c)) for c in captions])
    mask = torch.tensor([[1] * len(c) + [0] * (width - len(c)) for c in captions])
    logps = caption_forward(model, prompts, owners, ids, mask).logps
    for row, packed in zip(stock, logps, strict=True):
        assert torch.allclose(packed[: len(row)], row, atol=1e-4)
    total = sum((w * row[: len(w)]).sum() for w, row in zip(weights, logps, strict=True))
    gradients = torch.autograd.grad(total, learn)
    assert any(g.abs().max() > 1e-4 for g in gradients)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4 * max(1.0, theirs.abs().max())), parts


@pytest.mark.parametrize(("family", "parts"), cases())
@torch.no_grad()
def test_switched_off_it_is_the_policy_before_training_and_on_what_plain_peft_loads(
    family, parts, tmp_path
):
    start, processor = base_policy(family)
    rows, *_ = inputs_of(start, processor, 1)
    model, _ = adapted(family, parts)
    model.save_pretrained(str(tmp_path))
    caption = [30, 31, 32, 33]
    trained = stock_logits(model, rows[0], caption)
    loaded = PeftModel.from_pretrained(base_policy(family)[0], str(tmp_path)).eval()
    assert torch.equal(stock_logits(loaded, rows[0], caption), trained)
    before = stock_logits(start, rows[0], caption)
    assert not torch.equal(before, trained)
    for subject in (model, load_adapter(base_policy(family)[0], tmp_path)):
        with adapter_off(subject):
            assert torch.equal(stock_logits(subject, rows[0], caption), before)
        assert torch.equal(stock_logits(subject, rows[0], caption), trained)
    evaluated = load_adapter(base_policy(family)[0], tmp_path)
    with evaluated.disable_adapter():  # as evaluation does
        assert torch.equal(stock_logits(evaluated, rows[0], caption), before)
    assert torch.equal(stock_logits(evaluated, rows[0], caption), trained)
    merged = stock_logits(loaded.merge_and_unload(), rows[0], caption)
    assert torch.allclose(merged, trained, atol=1e-4)
    again, _ = adapted(family, parts, moved=False)
    key = content_key(unwrapped(model), processor)
    assert key == content_key(unwrapped(again), processor)  # what learns is not in it


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_cache_keeps_what_no_update_changes(family, tmp_path):
    kinds = {}
    for parts in [{}, {"connector": "lora"}, *KINDS]:
        model, processor = adapted(family, parts, moved=False)
        _, images, texts = inputs_of(model, processor)
        cache = VisionCache(model, processor, FAMILIES[family], folder=tmp_path)
        (prompt, _) = cache.prompts(images, texts)
        kind = "features" if prompt.features is not None else "states"
        kind = "pixels" if "pixel_values" in prompt.vision else kind
        kinds[named(parts)] = kind
        assert (STATES in prompt.vision) == (kind == "states")
        expected = (DEFAULT | parts)["vision"] != "off"
        assert (kind == "pixels") == expected, parts
        with adapter_off(model):
            cache.prompts(images, texts)
            assert cache.hit_rate() > 0  # whether the adapter is on or off
    assert {kinds[""], kinds["language_full"]} == {"features"}
    assert {kinds["connector_full"], kinds["connector_lora"]} == {"states"}


@pytest.mark.parametrize("family", FAMILY_NAMES)
@torch.no_grad()
def test_what_is_sampled_follows_a_connector_that_learns_and_leaves_again_without_it(family):
    model, processor = adapted(family, {"connector": "full", "language": "off"}, moved=False)
    _, images, texts = inputs_of(model, processor)
    cache = VisionCache(model, processor, FAMILIES[family])

    def logps():
        prompts = cache.prompts(images, texts)
        torch.manual_seed(0)
        sampled = sample(
            model, prompts, [0, 0, 1], do_sample=True, max_new_tokens=4, min_new_tokens=4
        )
        return sampled.ids, sampled.logps

    before = logps()
    for _, learnt in copies(model):
        for p in learnt.parameters():
            p.add_(0.1 * torch.randn_like(p))
    after = logps()
    assert cache.hit_rate() == 0.5  # the second time from the cache, and not stale
    assert after != before
    with adapter_off(model):
        assert logps() == before
    assert logps() == after


@torch.no_grad()
def test_a_half_precision_policy_learns_in_float32_what_plain_peft_computes(tmp_path):
    parts = {"connector": "full", "language": "full"}
    model, processor = adapted("smolvlm", parts, torch.bfloat16)
    pairs = [*copies(model)]
    for start, learnt in pairs:
        assert {p.dtype for p in start.parameters()} == {torch.bfloat16}
        assert {p.dtype for p in learnt.parameters()} == {torch.float32}
    rows, *_ = inputs_of(model, processor, 1)
    model.save_pretrained(str(tmp_path))
    base, _ = base_policy("smolvlm")
    plain = PeftModel.from_pretrained(base.to(torch.bfloat16), str(tmp_path)).eval()
    ours, theirs = (stock_logits(m, rows[0], [30, 31]) for m in (model, plain))
    assert torch.equal(ours, theirs)
    weight = pairs[0][1].weight
    before = weight.clone()
    weight.add_(1e-4 * before)
    assert (weight != before).float().mean() > 0.99
    same = weight.bfloat16() == before.bfloat16()
    assert same.float().mean() > 0.9  # what bfloat16 would have lost
    forward = pairs[0][1].forward
    keep_in_float32(model)
    assert pairs[0][1].forward is forward  # it was done
    loaded = model.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert not loaded.unexpected_keys
    assert torch.equal(weight, before)  # a checkpoint comes back to the bit
    assert weight.dtype == torch.float32


def test_whole_weights_learn_at_a_tenth_of_the_rate():
    a, b, c = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    groups = [{"params": [a, b], "weight_decay": 0.1}, {"params": [c], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([*groups, {"params": []}], lr=1e-3)
    split_rates(optimizer, {id(b), id(c)})
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates == pytest.approx({id(a): 1e-3, id(b): 1e-4, id(c): 1e-4})
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay == {id(a): 0.1, id(b): 0.1, id(c): 0.0}
    for p in (a, b, c):
        p.grad = torch.ones(2)
    optimizer.step()  # Adam's first step is the rate
    assert [p[0].item() for p in (a, b, c)] == pytest.approx([-1e-3, -1e-4, -1e-4], rel=1e-3)


def test_quantised_weights_cannot_be_full_and_a_part_without_linear_layers_has_no_lora():
    model, _ = base_policy("smolvlm")
    proj = model.model.connector.modality_projection.proj
    stored = copy.deepcopy(proj.weight)
    proj.weight = torch.nn.Parameter(stored.data.to(torch.uint8), requires_grad=False)
    train = DEFAULT | {"connector": "full"}
    with pytest.raises(UserError, match=r"connector: full; allowed: off or lora, .* quantised"):
        adapter_config(FAMILIES["smolvlm"], train, LORA, lambda: model)
    model.model.connector.modality_projection.proj = torch.nn.Identity()
    with pytest.raises(UserError, match=r"connector: lora needs linear layers"):
        adapter_config(FAMILIES["smolvlm"], DEFAULT | {"connector": "lora"}, LORA, lambda: model)
