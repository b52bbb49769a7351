"""Ends of captions: any of a family's ends one, and given captions get the policy's own."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from vizer_rl.assets import POLICIES
from vizer_rl.policy import captioner, load
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.hidden_states import caption_tokens
from vizer_rl.policy.shared_prefix.vision_cache import VisionCache
from vizer_rl.scoring import reference_policy

from ..conftest import FIXTURES
from .test_shared_prefix import load_case, random_images

PROMPT = "Describe the image."
PROCESSORS = {"smolvlm": "granite-docling-258m", "qwen2vl": "qwen2-vl-2b-instruct"}
REAL_ENDS = {"smolvlm": {"<|end_of_text|>"}, "qwen2vl": {"<|im_end|>", "<|endoftext|>"}}
EMBEDDED_ENDS = {"smolvlm": ["<end_of_utterance>"], "qwen2vl": ["<|im_end|>"]}
SMOLVLM_ENDS = FAMILIES["smolvlm"].ends
CAPTIONS = ["A dog runs on the beach, isn't it?", "Two red kites (café) at 7:30", "a"]
SPECIAL = "What looks like <image> or <|im_end|>, <end_of_utterance> and <|endoftext|>"
DECLARED = [None, 7, [7]]  # by a generation_config: nothing, or an ordinary token


def ids_of(processor, names):
    return sorted(processor.tokenizer.convert_tokens_to_ids(list(names)))


def assert_ends(model, processor, names, end):
    """Ends are those tokens, never forbidden; a given caption comes back from its tokens."""
    ends = load.eos_ids(model, processor)
    assert ids_of(processor, names) == ends
    assert not set(ends) & set(load.forbidden_ids(model, processor))
    assert 7 not in ends  # a word, whatever a generation_config declares
    assert load.end_id(model, processor) == ids_of(processor, [end])[0]
    for caption in CAPTIONS:
        ids = caption_tokens(model, processor, PROMPT, caption)
        assert ids[-1] == load.end_id(model, processor)
        assert not set(ids[:-1]) & set(ends)
        decoded = processor.tokenizer.decode(ids, skip_special_tokens=True)
        assert decoded.strip() == caption
    ids = caption_tokens(model, processor, PROMPT, SPECIAL)
    assert not set(ids[:-1]) & {*ends, *load.forbidden_ids(model, processor)}


@pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="../shared/fixtures (real processors, photographs) is not here"
)
@pytest.mark.parametrize("declared", DECLARED)
@pytest.mark.parametrize("family", sorted(PROCESSORS))
def test_real_processors_end_captions_whatever_their_checkpoint_declares(family, declared):
    folder = FIXTURES / "processors" / PROCESSORS[family]
    processor = AutoProcessor.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    model.generation_config.eos_token_id = declared
    end = {"smolvlm": "<|end_of_text|>", "qwen2vl": "<|im_end|>"}[family]
    assert_ends(model, processor, REAL_ENDS[family], end)
    processor.chat_template = FAMILIES[family].chat_template  # no answer ends in it
    assert load.end_id(model, processor) == processor.tokenizer.eos_token_id
    processor.tokenizer.eos_token = processor.tokenizer.pad_token
    assert load.end_id(model, processor) == processor.tokenizer.pad_token_id


@pytest.mark.parametrize("family", sorted(POLICIES))
def test_embedded_checkpoints_have_their_one_end(family):
    model, processor = load_case(family, False)
    names = EMBEDDED_ENDS[family]
    assert load.eos_ids(model, processor) == ids_of(processor, names)
    assert load.end_id(model, processor) == processor.tokenizer.eos_token_id
    assert processor.tokenizer.pad_token_id in load.forbidden_ids(model, processor)
    ids = caption_tokens(model, processor, PROMPT, "a red star")
    assert processor.tokenizer.decode(ids, skip_special_tokens=True).strip() == "a red star"
    assert ids[-1:] == ids_of(processor, names)


def smolvlm_folder(folder, declared, turn_end):
    """A checkpoint with SmolVLM's end tokens, a chat template that ends turns with one of them."""
    model, processor = load_case("smolvlm", False)
    processor.tokenizer.add_tokens(["<|endoftext|>", "<|im_end|>"], special_tokens=True)
    processor.chat_template = processor.chat_template.replace("<end_of_utterance>", turn_end)
    model.resize_token_embeddings(len(processor.tokenizer))
    model.generation_config.eos_token_id = declared
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("turn_end", SMOLVLM_ENDS)
@pytest.mark.parametrize("declared", [None, 7])
def test_smolvlm_ends_captions_with_any_of_its_ends(turn_end, declared, tmp_path):
    model, processor = load.load_policy("smolvlm", smolvlm_folder(tmp_path, declared, turn_end))
    ends = ids_of(processor, SMOLVLM_ENDS)
    assert_ends(model, processor, SMOLVLM_ENDS, turn_end)
    assert model.generation_config.eos_token_id == ends


def test_states_of_given_captions_end_as_the_policy_ends_them(tmp_path, monkeypatch):
    model, processor = load.load_policy("smolvlm", smolvlm_folder(tmp_path, 7, "<|endoftext|>"))
    given = []
    hidden_states = reference_policy.hidden_states

    def spy(model, processor, chats, completions, *args):
        given.extend(completions)
        return hidden_states(model, processor, chats, completions, *args)

    monkeypatch.setattr(reference_policy, "hidden_states", spy)
    reference = reference_policy.ReferencePolicy(model, processor, "smolvlm-base")
    for images in (None, random_images([(96, 96)])):
        assert reference.caption_states(["a red star"], images).isfinite().all()
    assert [ids[-1:] for ids in given] == [ids_of(processor, ["<|endoftext|>"])] * 2
    assert processor.tokenizer.eos_token == "<end_of_utterance>"


@pytest.mark.parametrize("name", SMOLVLM_ENDS)
@pytest.mark.parametrize("cached", [False, True])
def test_sampling_stops_wherever_the_policy_writes_an_end(name, cached, tmp_path, monkeypatch):
    folder = smolvlm_folder(tmp_path, None, "<|im_end|>")
    model, processor = load.load_policy("smolvlm", folder)
    (end,) = ids_of(processor, [name])
    forbidden = load.forbidden_ids(model, processor)
    others = [i for i in range(len(processor.tokenizer)) if i != end]
    monkeypatch.setattr(captioner, "forbidden_ids", lambda *_: others)
    cache = VisionCache(model, processor, FAMILIES["smolvlm"]) if cached else None
    captions = captioner.caption(
        model,
        processor,
        random_images([(96, 96)] * 2),
        PROMPT,
        max_new_tokens=4,
        temperature=1.0,
        vision_cache=cache,
    )
    assert end not in forbidden
    assert captions == [captioner.Caption("", [end])] * 2
