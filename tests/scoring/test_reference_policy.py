"""The frozen policy's view: its numbers against one naive forward pass each, and what it hides."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from rewards.lib.images import image_hash
from vizer_rl.assets import POLICIES
from vizer_rl.data import scenes as draw
from vizer_rl.data.perturb import VIEWS, masked
from vizer_rl.policy import hidden_states, load, vision
from vizer_rl.policy.chat import answers_questions
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.weights_hash import content_key
from vizer_rl.scoring.reference_policy import ReferencePolicy

CAPTIONS = [
    "a small solid red square",
    "",
    "a red square and a café 🙂",
    "an <image> of <|image_pad|> </s>",
    "a heart",
]


def loaded(family):
    return load.load_policy(family, "embedded", dtype="float32")


@pytest.fixture(scope="module", params=[*sorted(POLICIES), "tiles"])
def reference(request):
    """Both families, and SmolVLM with large images cut into tiles."""
    model, processor = loaded("smolvlm" if request.param == "tiles" else request.param)
    if request.param == "tiles":
        processor.image_processor.do_image_splitting = True
        processor.image_processor.size = {"longest_edge": 192}
    return ReferencePolicy(model, processor, "embedded", prompt="Describe the image.")


@pytest.fixture(scope="module")
def images():
    """Scenes of three shapes, so that grids, tiles and prompts differ in length; one twice."""
    scenes = [draw.render(draw.sample(4_000_000 + k)) for k in range(3)]
    wide = scenes[1].crop((0, 20, 96, 70)).resize((192, 96))
    tall = scenes[2].crop((30, 0, 70, 96))
    return [scenes[0], wide, tall, scenes[0], wide]


def naive(reference, caption, image):
    """Token log-probabilities as anyone would write them: one caption, one forward pass."""
    processor, content = reference.processor, [{"type": "text", "text": reference.prompt}]
    if image is not None:
        content.insert(0, {"type": "image"})
    chat = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    lead = "" if chat.endswith("\n") or not caption else " "
    ids = processor.tokenizer(
        lead + caption, add_special_tokens=False, split_special_tokens=True, return_tensors="pt"
    )["input_ids"].long()
    pictures = {} if image is None else {"images": [[image]]}
    inputs = dict(processor(text=[chat], return_tensors="pt", **pictures))
    if image is None:
        inputs = dict(processor.tokenizer(chat, return_tensors="pt"))
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], 0 * ids], 1)
    with torch.no_grad():
        logp = reference.model(**inputs).logits.float().log_softmax(-1)
    before = logp[0, logp.shape[1] - ids.shape[1] - 1 : -1]
    return before.gather(-1, ids[0][:, None])[:, 0]


@pytest.mark.parametrize("view", [*VIEWS, "text"])
def test_log_probs_are_those_of_one_forward_pass_each(reference, images, view):
    given = None if view == "text" else images
    matches = reference.log_probs(CAPTIONS, given, view)
    for caption, image, logp in zip(CAPTIONS, images, matches, strict=True):
        shown = None if view == "text" else VIEWS[view](image)
        wanted = naive(reference, caption, shown)
        assert logp.dtype == torch.float32
        assert len(logp) == len(reference.tokens(caption))
        torch.testing.assert_close(logp, wanted, atol=1e-5, rtol=1e-5)
    assert len(matches[1]) == 0, "an empty caption has no token"
    assert reference.log_probs([], None if view == "text" else [], view) == []


def test_plain_text_is_tokenised_as_the_processor_does_it(reference, images):
    """The prompt is cut behind the image and the caption set apart: the same tokens come out."""
    chat = reference._chat(reference.prompt)
    answer = reference._answer(chat, CAPTIONS[0])
    whole = reference.processor(images=[[images[1]]], text=[chat + answer], return_tensors="pt")[
        "input_ids"
    ][0]
    before, token, after = chat.partition(str(reference.processor.image_token))
    (inputs,) = vision.process_images(reference.processor, [images[1]], [before + token])
    rest = reference.processor.tokenizer(after, add_special_tokens=False)["input_ids"]
    assert [*inputs["ids"].tolist(), *rest, *reference._tokenize(answer)] == whole.tolist()


def test_what_is_read_together_does_not_matter(reference, images, monkeypatch):
    together = reference.log_probs(CAPTIONS, images)
    monkeypatch.setattr(hidden_states, "TOKENS", 100)
    apart = reference.log_probs(CAPTIONS, images)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_tokens_joined_are_the_caption(reference):
    for caption in CAPTIONS:
        assert "".join(reference.tokens(caption)).strip() == caption


def test_views_and_images_must_fit(reference, images):
    with pytest.raises(ValueError, match="view 'dark' is unknown: there are image, masked, blank"):
        reference.log_probs(["a"], images[:1], "dark")
    with pytest.raises(ValueError, match="takes no images"):
        reference.log_probs(["a"], images[:1], "text")
    with pytest.raises(ValueError, match="needs images"):
        reference.log_probs(["a"])


def test_caption_states_with_and_without_the_image(reference, images):
    alone = reference.caption_states(CAPTIONS)
    assert alone.shape == (len(CAPTIONS), reference.model.config.text_config.hidden_size)
    ids = reference.processor.tokenizer(CAPTIONS[0] + reference.processor.tokenizer.eos_token)
    with torch.no_grad():
        hidden = reference.model.model(torch.tensor([ids["input_ids"]])).last_hidden_state[0]
    torch.testing.assert_close(alone[0], hidden.mean(0), atol=1e-5, rtol=1e-5)
    shown = reference.caption_states(CAPTIONS, images)
    assert (shown - alone).abs().max() > 0.01
    swapped = reference.caption_states(CAPTIONS, images[::-1])
    assert (shown - swapped)[0].abs().max() > 0.01
    torch.testing.assert_close(shown[2], swapped[2], atol=1e-5, rtol=1e-5)


def test_image_features_are_means_and_remembered(reference, images):
    ids = ["x", "y", "z", "x", "y"]
    both = reference.image_features(ids, images)
    if reference.processor.image_processor.to_dict().get("do_image_splitting"):
        tiles = [
            vision.process_images(reference.processor, [i], ["<image>"])[0]["pixel_values"]
            for i in images
        ]
        assert len({t.shape[1] for t in tiles}) > 1, "images of several numbers of tiles"
    reference._features.clear()
    each = torch.cat([reference.image_features([i], [p]) for i, p in zip(ids, images, strict=True)])
    torch.testing.assert_close(both, each, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both[0], both[3])
    assert reference.image_features(["x"], [None]).shape == (1, both.shape[1])


def test_samples_are_of_their_images_and_seed(reference, images):
    one = reference.sample(images[:2], 3, seed=1)
    state = torch.random.get_rng_state()
    assert [len(captions) for captions in one] == [3, 3]
    assert one == reference.sample(images[:2], 3, seed=1)
    assert one != reference.sample(images[:2], 3, seed=2)
    assert torch.equal(state, torch.random.get_rng_state())


def test_captioners_answer_no_question(reference):
    assert reference.instruct is False


@pytest.mark.parametrize(
    ("source", "family", "template", "answers"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", "qwen2vl", "own", True),
        ("/models/qwen2-vl-2b-instruct/", "qwen2vl", "own", True),
        ("HuggingFaceTB/SmolVLM-Base", "smolvlm", "own", False),
        ("embedded", "smolvlm", "own", False),
        ("Qwen/Qwen2-VL-2B-Instruct", "qwen2vl", FAMILIES["qwen2vl"].chat_template, False),
        ("/instruct/base", "qwen2vl", "own", False),
        ("HuggingFaceM4/Idefics3-8B-Llama3", "idefics3", "own", True),
        ("google/gemma-3-4b-it", "gemma3", "own", True),
        ("google/gemma-3-4b-pt", "gemma3", "own", False),
        ("OpenGVLab/InternVL3-1B-hf", "internvl", "own", True),
        ("OpenGVLab/InternVL3-1B-Pretrained-hf", "internvl", "own", False),
        ("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "llava_onevision", "own", True),
    ],
)
def test_who_answers_questions(source, family, template, answers):
    processor = type("Processor", (), {"chat_template": template})
    model_type = FAMILIES[family].model_types[0]
    assert answers_questions(source, model_type, processor) is answers


def test_adapter_mode_and_weights_stay_as_they_were(images):
    model, processor = loaded("smolvlm")
    reference = ReferencePolicy(model, processor, "embedded")
    before, key = reference.log_probs(CAPTIONS, images), reference.key
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    adapted.train()
    model.model.vision_model.eval()
    with torch.no_grad():
        other = naive(reference, CAPTIONS[0], images[0])
    assert (other - before[0]).abs().max() > 0.1, "the adapter does nothing"
    wrapped = ReferencePolicy(adapted, processor, "embedded")
    for policy in (reference, wrapped):  # given the base before PEFT took it, or what PEFT made
        torch.testing.assert_close(policy.log_probs(CAPTIONS, images), before)
    assert adapted.training
    assert not model.model.vision_model.training
    assert all(p.requires_grad for n, p in adapted.named_parameters() if "lora_" in n)
    assert reference.key == key


def test_the_key_changes_with_any_weight_and_with_the_processor():
    model, processor = loaded("qwen2vl")
    keys = {content_key(model, processor)}
    assert content_key(*loaded("qwen2vl")) in keys
    for weight in list(model.parameters())[::7]:
        with torch.no_grad():
            weight.view(-1)[-1] *= 1.001
        keys.add(content_key(model, processor))
    swapped = next(p for p in model.parameters() if p.ndim == 2)
    with torch.no_grad():
        swapped[:2] = swapped[:2].flip(0)
    keys.add(content_key(model, processor))
    processor.image_processor.patch_size = 6
    keys.add(content_key(model, processor))
    assert len(keys) == 3 + len(list(model.parameters())[::7])


def test_a_masked_view_hides_sixty_percent_always_the_same():
    scene = draw.render(draw.sample(4_000_001)).resize((140, 98))
    shown = masked(scene)
    same = [a == b for a, b in zip(scene.getdata(), shown.getdata(), strict=True)]
    assert 1 - sum(same) / len(same) == pytest.approx(42 / 70, abs=0.01)  # of 10 x 7 patches
    assert image_hash(shown) == image_hash(masked(scene))
    photo = Image.effect_noise((1792, 896), 80).convert("RGB")  # patches grow with the image
    first = np.asarray(masked(photo))[:560, :560].reshape(10, 56, 10, 56, 3).swapaxes(1, 2)
    spread = first.std((2, 3, 4))
    assert set((spread > 1).ravel()) == {True, False}, "patches of 56 pixels, whole or hidden"
    assert all(s == 0 or s > 50 for s in spread.ravel())
    assert len(set(VIEWS["blank"](scene).getdata())) == 1


def test_half_precision_weights_give_whole_log_probs(images):
    reference = ReferencePolicy(
        *load.load_policy("qwen2vl", "embedded", dtype="bfloat16"), "embedded"
    )
    whole = ReferencePolicy(*loaded("qwen2vl"), "embedded").log_probs(CAPTIONS, images)
    for half, full in zip(reference.log_probs(CAPTIONS, images), whole, strict=True):
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, full, atol=0.3, rtol=0.1)
