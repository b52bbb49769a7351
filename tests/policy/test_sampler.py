"""Captions continued side by side: the tokens of `generate`, and its distribution."""

import gc
import weakref
from functools import partial

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from vizer_rl.policy import load
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.shared_prefix import sampler
from vizer_rl.policy.shared_prefix.packing import add_caption_head, caption_forward
from vizer_rl.policy.shared_prefix.vision_cache import VisionCache

from .test_shared_prefix import load_case, rows_of


def text_of(processor, question):
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    return processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


def image_prompts(model, processor, mixed):
    """Images with their prompts in chat form: of different lengths where `mixed`."""
    rows = rows_of(processor, mixed)[::4]
    return [row["image"] for row in rows], [
        text_of(processor, row["prompt"][0]["content"]) for row in rows
    ]


@pytest.mark.parametrize(("family", "mixed"), [("smolvlm", True), ("qwen2vl", True)])
def test_greedy_captions_are_those_of_generate(family, mixed):
    model, processor = load_case(family, mixed)
    images, texts = image_prompts(model, processor, mixed)
    options = {
        "do_sample": False,
        "max_new_tokens": 12,
        "repetition_penalty": 1.3,  # sees the prompt too
        "min_new_tokens": 3,
        "suppress_tokens": load.forbidden_ids(model, processor),
        "pad_token_id": processor.tokenizer.pad_token_id,
    }
    inputs = processor(images=[[i] for i in images], text=texts, padding=True, return_tensors="pt")
    assert not inputs["attention_mask"].all(), "prompts of different lengths"
    stock = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].tolist()
    prompts = VisionCache(model, processor, FAMILIES[family]).prompts(images, texts)
    captions = sampler.sample(model, prompts, [2, 0, 0, 1, 2], **options)
    end = set(load.eos_ids(model, processor))
    for ids, choice in zip(captions.ids, [2, 0, 0, 1, 2], strict=True):
        assert ids == stock[choice][: len(ids)]
        assert len(ids) == 12 or ids[-1] in end
        assert not end & set(ids[:-1])


def exact(model, processor, images, texts, allowed, options):
    """p of every pair of first tokens from rows of their own, top-k and temperature by hand."""

    def step(continued):
        inputs = processor(images=[[images[0]]], text=texts[:1], padding=True, return_tensors="pt")
        more = torch.tensor([continued], dtype=torch.long)
        for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            if name in inputs:
                tail = more if name == "input_ids" else torch.full_like(more, name[0] == "a")
                inputs[name] = torch.cat([inputs[name], tail], 1)
        logits = model(**inputs).logits[0, -1] / options["temperature"]
        kept = torch.full_like(logits, float("-inf"))
        kept[allowed] = logits[allowed]
        best = kept.topk(options["top_k"])
        return dict(zip(best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True))

    first = step([])
    return {(a, b): p * q for a, p in first.items() for b, q in step([a]).items()}


@pytest.mark.parametrize("family", ["smolvlm", "qwen2vl"])
@torch.no_grad()
def test_sampled_captions_have_the_distribution_of_the_model(family):
    model, processor = load_case(family, False)
    images, texts = image_prompts(model, processor, False)
    end = load.eos_ids(model, processor)
    hidden = load.forbidden_ids(model, processor) + end
    allowed = [i for i in range(len(processor.tokenizer)) if i not in set(hidden)]
    options = {"temperature": 1.5, "top_k": 3}
    wanted = exact(model, processor, images, texts, allowed, options)
    prompts = VisionCache(model, processor, FAMILIES[family]).prompts(images[:1], texts[:1])
    torch.manual_seed(0)
    count = 1500
    captions = sampler.sample(
        model,
        prompts,
        [0] * count,
        do_sample=True,
        top_p=1.0,
        max_new_tokens=2,
        suppress_tokens=hidden,
        pad_token_id=processor.tokenizer.pad_token_id,
        **options,
    )
    captured = [tuple(ids) for ids in captions.ids]
    assert set(captured) <= wanted.keys()
    likely = {pair: p * count for pair, p in wanted.items() if p * count >= 5}
    squares = sum((captured.count(pair) - n) ** 2 / n for pair, n in likely.items())
    assert squares < 27.9, "chi-square of 9 outcomes beyond its 99.95 % quantile"


def test_log_probs_of_sampled_tokens_are_those_the_loss_computes():
    model, processor = load_case("smolvlm", True)
    images, texts = image_prompts(model, processor, True)
    prompts = VisionCache(model, processor, FAMILIES["smolvlm"]).prompts(images, texts)
    prompt_idx = [0, 1, 2, 0, 1, 2, 2]
    torch.manual_seed(0)
    captions = sampler.sample(
        model, prompts, prompt_idx, do_sample=True, temperature=0.7, top_k=20, max_new_tokens=9
    )
    add_caption_head(model, 0.7)
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(i) for i in captions.ids], batch_first=True)
    logps = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in captions.logps], True)
    mask = (torch.arange(ids.shape[1]) < torch.tensor([[len(i)] for i in captions.ids])).long()
    with torch.no_grad():
        again = caption_forward(model, prompts, prompt_idx, ids, mask).logps
    assert torch.allclose(logps, again, atol=1e-5)


@pytest.mark.parametrize("family", ["smolvlm", "qwen2vl"])
def test_steps_of_fixed_shapes_sample_the_same_and_ask_nothing_of_the_host(family, monkeypatch):
    model, processor = load_case(family, True)
    images, texts = image_prompts(model, processor, True)
    prompts = VisionCache(model, processor, FAMILIES[family]).prompts(images, texts)
    fed, shapes = sampler.DecodeState._feed, []

    def feed(self, *result):
        if len(result) == 4:  # as for a CUDA graph: no shape may change, no value may be looked at
            shapes.append([tuple(x.shape) for x in result])
        if len(shapes) == 2 and len(result) == 4:
            with torch.no_grad():  # raises where a value is asked for
                make_fx(partial(fed, self), tracing_mode="fake", _allow_non_fake_inputs=True)(
                    *result
                )
        return fed(self, *result)

    monkeypatch.setattr(sampler.DecodeState, "_feed", feed)
    options = {"do_sample": True, "max_new_tokens": 20, "pad_token_id": 0}
    captions = []
    for fixed in (False, True):
        torch.manual_seed(3)
        captions.append(
            sampler.sample(model, prompts, [2, 0, 0, 1, 2, 2], static_shapes=fixed, **options)
        )
    assert captions[0].ids == captions[1].ids
    assert len({len(ids) for ids in captions[0].ids}) > 1, "captions of different lengths"
    for growing, fixed in zip(captions[0].logps, captions[1].logps, strict=True):
        assert growing == pytest.approx(fixed, abs=1e-5)
    assert len(shapes) == max(map(len, captions[0].ids))
    assert all(shape == shapes[0] for shape in shapes)


@pytest.mark.parametrize("fixed", [False, True])
def test_keys_and_values_are_gone_when_sampling_is_done(fixed, monkeypatch):
    model, processor = load_case("smolvlm", False)
    images, texts = image_prompts(model, processor, False)
    prompts = VisionCache(model, processor, FAMILIES["smolvlm"]).prompts(images, texts)
    built, static_kv_cache = [], sampler.static_kv_cache

    def room(*result):
        built.append(weakref.ref(cache := static_kv_cache(*result)))
        return cache

    monkeypatch.setattr(sampler, "static_kv_cache", room)
    gc.disable()  # whoever goes round in circles stays
    try:
        sampler.sample(
            model, prompts, [0, 0, 1], static_shapes=fixed, max_new_tokens=9, pad_token_id=0
        )
        assert [cache() for cache in built] == [None]
    finally:
        gc.enable()


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["smolvlm", "qwen2vl"])
def test_a_graph_samples_what_steps_launched_one_by_one_do(family):
    model, processor = load_case(family, True)
    images, texts = image_prompts(model, processor, True)
    prompts = VisionCache(model, processor, FAMILIES[family]).prompts(images, texts)
    options = {"do_sample": False, "max_new_tokens": 40, "min_new_tokens": 20, "pad_token_id": 0}
    growing, fixed = (
        sampler.sample(model, prompts, [2, 0, 0, 1, 2, 2], static_shapes=fixed, **options)
        for fixed in (False, True)
    )
    assert growing.ids == fixed.ids


@pytest.mark.parametrize("family", ["smolvlm", "qwen2vl"])
@torch.no_grad()
def test_bfloat16_is_no_further_from_float32_than_rows_of_their_own(family):
    model, processor = load_case(family, False)
    images, texts = image_prompts(model, processor, False)
    add_caption_head(model, 1.0)
    ids = torch.randint(20, 500, (24, 12), device=model.device)
    mask, prompt_idx = torch.ones_like(ids), [n // 8 for n in range(24)]
    inputs = processor(
        images=[[images[n]] for n in prompt_idx],
        text=[texts[n] for n in prompt_idx],
        padding=True,
        return_tensors="pt",
    ).to(model.device)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], 1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], mask], 1)
    if "mm_token_type_ids" in inputs:
        kinds = inputs["mm_token_type_ids"]
        inputs["mm_token_type_ids"] = torch.cat([kinds, torch.zeros_like(ids).to(kinds)], 1)

    def rows():
        logits = model(**inputs).logits[:, -13:-1].float()
        return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]

    truth = rows()
    model.to(torch.bfloat16)
    prompts = VisionCache(model, processor, FAMILIES[family]).prompts(images, texts)
    packed = caption_forward(model, prompts, prompt_idx, ids, mask).logps
    stock_error = (rows() - truth).abs().mean()
    assert (packed - truth).abs().mean() <= 1.1 * stock_error
