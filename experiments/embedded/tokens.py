"""Tokenizers and chat templates: byte-level BPE, each word of a scene is one token."""

from __future__ import annotations

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from experiments.embedded.web import OPENINGS, STYLES, VAGUE
from vizer_rl.data.scenes import COLOURS, FILLS, NUMBERS, RELATIONS, SHAPES, SIZES, plural

PROMPT = "Describe the image."
PAD = "<|pad|>"  # none of a family's ends: these policies have not learned a second one
EXTRA = """no not without and the in on with of next to right below under over around photo image
picture background shape shapes object objects tiny big stripes disc four five it is there are
system user assistant You are a helpful assistant User: Assistant: Describe the image."""

SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def words() -> list[str]:
    scene = [*SHAPES, *map(plural, SHAPES), *COLOURS, *SIZES, *FILLS, *NUMBERS.values(), "a"]
    return [*scene, *" ".join((*RELATIONS, *VAGUE, *OPENINGS, *STYLES, EXTRA)).split()]


def tokenizer(
    special: list[str],
    *,
    lower: bool = False,
    around: tuple[str, str] | None = None,
    vocabulary: int = 1024,
) -> Tokenizer:
    """Byte-level BPE with these special tokens first; `around` wraps each text in two tokens.

    vocabulary: at most so many tokens; with fewer, words are of several.
    """
    bpe = Tokenizer(models.BPE())
    if lower:
        bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=lower)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [f"{lead}{word}" for word in words() for lead in (" ", "")] * 2
    bpe.train_from_iterator(corpus, trainer)
    if around:  # open_clip takes a text's feature at its highest id: the last token comes last
        first, last = around
        bpe.add_special_tokens([last])
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}",
            special_tokens=[(t, bpe.token_to_id(t)) for t in around],
        )
    return bpe


def check(fast: PreTrainedTokenizerFast) -> None:
    """ValueError where a word of a scene is not one token."""
    for word in filter(str.isalpha, words()):
        ids = fast.encode(" " + word, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(f"{word!r} is {len(ids)} tokens: {fast.convert_ids_to_tokens(ids)}")
