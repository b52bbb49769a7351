"""Checkpoints of random weights: real configs and processors, real width or tiny, ends included.

Captions of random weights would never end within a few tokens, and a run whose base does not end
its captions is refused. So the head's row of an ending token is drawn wider than the others: about
a fifth of all positions end a caption.
"""

import json
from math import gcd

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    Idefics3Config,
    Idefics3ImageProcessor,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)

from vizer_rl.policy.load import end_id

from .conftest import FIXTURES

PHOTOS, PROCESSORS = FIXTURES / "photos", FIXTURES / "processors"
FOLDERS = {"smolvlm": "granite-docling-258m", "qwen2vl": "qwen2-vl-2b-instruct"}
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
VISION = {
    "smolvlm": {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4},
    "qwen2vl": {"embed_dim": 64, "hidden_size": 64, "num_heads": 4, "mlp_ratio": 2},
}
# SmolVLM-Base's tokens: the first of its vocabulary, those from 49152; a turn of its template ends
# with <|endoftext|>
FIRST = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<reserved_{k}>" for k in range(14))]
ADDED = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
SMOLVLM_WORDS = 49152
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
END_SPREAD = 16.0  # standard deviation of the ending token's logit
POOL = 4_000_037  # random numbers that all weights are windows of: odd, no multiple of a width


def checkpoint(family, folder, *, real_width):
    """A model folder as from the hub: real processor and config, one layer, random weights."""
    source = PROCESSORS / FOLDERS[family]
    processor, config = AutoProcessor.from_pretrained(source), AutoConfig.from_pretrained(source)
    set_depth(family, config, 1)
    if not real_width:
        shrink(family, config)
    elif family == "qwen2vl":
        config.vision_config.hidden_size = config.text_config.hidden_size
    save(config, processor, folder, torch.float32)


def published(family, folder, *, full_width=True, few_tokens=True, ends=True):
    """A bf16 checkpoint of the published vocabulary and width, or a tiny one, two layers deep.

    smolvlm is SmolVLM-Base here, in place of Granite's. few_tokens: images so small that they are 4
    tokens, for a CPU; else as published. ends: whether its captions come to an end now and then.
    """
    if family == "smolvlm":
        edge = 84 if few_tokens else 384
        config = smolvlm_base_config(edge)
        processor = smolvlm_processor(granite_tokenizer(), edge, config)
    else:
        source = PROCESSORS / FOLDERS[family]
        sizes = {"min_pixels": 56 * 56, "max_pixels": 56 * 56} if few_tokens else {}
        config = AutoConfig.from_pretrained(source)
        config.vision_config.hidden_size = config.text_config.hidden_size
        processor = AutoProcessor.from_pretrained(source, **sizes)
    set_depth(family, config, 2)
    if not full_width:
        shrink(family, config)
    save(config, processor, folder, torch.bfloat16, ends)


def shrink(family, config):
    """Tiny widths in the language model and in the vision tower; the vocabulary stays."""
    text = config.text_config
    text.update({k: v for k, v in TINY.items() if hasattr(text, k)})
    text.num_key_value_heads = 2
    config.vision_config.update(VISION[family])
    if family == "qwen2vl":
        text.rope_parameters = {**text.rope_parameters, "mrope_section": [2, 3, 3]}


def set_depth(family, config, layers):
    """That many layers in the language model and in the vision tower."""
    text = config.text_config
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = ["full_attention"] * layers
    setattr(config.vision_config, "depth" if family == "qwen2vl" else "num_hidden_layers", layers)


def smolvlm_base_config(edge, **text):
    """SmolVLM-Base's config but for its depth: SmolLM2-1.7B behind SigLIP so400m, untied."""
    first, pad = 0, 2
    return Idefics3Config(
        image_token_id=SMOLVLM_WORDS + ADDED.index("<image>"),
        pad_token_id=pad,
        scale_factor=3,
        tie_word_embeddings=False,
        text_config={
            "model_type": "llama",
            "vocab_size": SMOLVLM_WORDS + len(ADDED),
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 16384,
            "rope_theta": 273768.0,
            "bos_token_id": first,
            "eos_token_id": first,
            "pad_token_id": pad,
            "tie_word_embeddings": False,
            **text,
        },
        vision_config={
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_attention_heads": 16,
            "patch_size": 14,
            "image_size": edge,
        },
    )


SMALL = {  # SmolLM2-135M and -360M behind SigLIP base: widths, depth, heads, those of keys
    "256M": (576, 1536, 30, 9, 3),
    "500M": (960, 2560, 32, 15, 5),
}


def smolvlm_small_config(size):
    """The config of SmolVLM-256M or -500M: an image is one tile of 512 pixels, 64 tokens."""
    names = "hidden_size intermediate_size num_hidden_layers num_attention_heads"
    names = [*names.split(), "num_key_value_heads"]
    return Idefics3Config(
        image_token_id=SMOLVLM_WORDS + ADDED.index("<image>"),
        pad_token_id=2,
        scale_factor=4,
        tie_word_embeddings=False,
        text_config={
            "model_type": "llama",
            "vocab_size": 49280,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": False,
            "eos_token_id": 0,
            **dict(zip(names, SMALL[size], strict=True)),
        },
        vision_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "patch_size": 16,
            "image_size": 512,
        },
    )


def granite_tokenizer():
    """A tokenizer with SmolVLM-Base's ids: the first merges of Granite's stand for SmolLM2's."""
    source = PROCESSORS / FOLDERS["smolvlm"]
    ranked = json.loads((source / "vocab.json").read_text())
    pieces = sorted(ranked, key=ranked.__getitem__)[: SMOLVLM_WORDS - len(FIRST)]
    vocabulary = {piece: number for number, piece in enumerate([*FIRST, *pieces])}
    lines = (source / "merges.txt").read_text().splitlines()
    pairs = [tuple(line.split(" ")) for line in lines if not line.startswith("#version")]
    merges = [pair for pair in pairs if {*pair, "".join(pair)} <= vocabulary.keys()]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in FIRST])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=FIRST[0], bos_token=FIRST[0], pad_token=FIRST[2]
    )


def smolvlm_processor(tokenizer, edge, config, template=SMOLVLM_TEMPLATE):
    """SmolVLM's processor around a tokenizer of 49,152 words: tiles of `edge` pixels."""
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in ADDED])
    assert tokenizer.convert_tokens_to_ids("<image>") == config.image_token_id
    images = Idefics3ImageProcessor(
        size={"longest_edge": 4 * edge}, max_image_size={"longest_edge": edge}
    )
    side = edge // config.vision_config.patch_size
    return Idefics3Processor(
        images,
        tokenizer,
        image_seq_len=side**2 // config.scale_factor**2,
        chat_template=template,
    )


def save(config, processor, folder, dtype, ends=True):
    """Write processor and a model of random weights to a folder."""
    processor.save_pretrained(folder)
    torch.manual_seed(0)
    if dtype == torch.float32:
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    else:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        model.tie_weights()
        model.to_empty(device="cpu")
        fill(model)
    model.generation_config.eos_token_id = config.get_text_config().eos_token_id
    if ends:
        make_captions_end(model, processor)
    model.save_pretrained(folder)


@torch.no_grad()
def fill(model):
    """Random weights at the speed of a copy: each is a window of one pool of random numbers."""
    pool = torch.randn(POOL).mul_(0.02).to(torch.bfloat16)
    start = 0
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(float("norm" in name and name.endswith("weight")))
            continue
        assert gcd(POOL, parameter.shape[-1]) == 1  # no two rows are alike
        repeats = -(-(start + parameter.numel()) // POOL)
        flat = pool.repeat(repeats)[start : start + parameter.numel()]
        parameter.copy_(flat.view_as(parameter))
        start = (start + parameter.numel()) % POOL


@torch.no_grad()
def make_captions_end(model, processor):
    """Draw the head's row of the ending token so wide that about a fifth of the positions end."""
    row = model.get_output_embeddings().weight[end_id(model, processor)]
    row.copy_(torch.randn(len(row)) * END_SPREAD / len(row) ** 0.5)
