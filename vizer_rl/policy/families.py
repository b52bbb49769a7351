"""Families of vision-language models: what differs between them, as one frozen entry each."""

from __future__ import annotations

from dataclasses import dataclass

from .image_tokens import ImageTokens, PixelTokens, TileTokens


@dataclass(frozen=True)
class Family:
    """A family: where its parts are, and what it needs.

    vision_modules: dotted paths of all modules between pixels and the language model; mrope: rotary
    positions in time, height and width; shared_prefix: whether a group can share one prompt, else
    every caption is a row of its own; lora: regular expression of the modules that LoRA adapts (the
    language model's projections, nothing of tower or connector); chat_template: for a base model
    whose processor has none; ends: every token that ends a caption, in the checkpoints that have
    it; images: how its processor turns an image into tokens, with the default budget; vllm: whether
    TRL may sample from it with vLLM.
    """

    model_types: tuple[str, ...]
    vision_modules: tuple[str, ...]
    mrope: bool
    shared_prefix: bool
    lora: str
    chat_template: str
    ends: tuple[str, ...]
    images: ImageTokens
    vllm: bool


_PROJECTIONS = r"(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"

FAMILIES = {
    "smolvlm": Family(
        model_types=("idefics3", "smolvlm"),
        vision_modules=("model.vision_model", "model.connector"),
        mrope=False,
        shared_prefix=True,
        lora=rf"model\.text_model\..*\.{_PROJECTIONS}",
        chat_template=(
            "{% for message in messages %}{% for part in message['content'] %}"
            "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
            "{% endfor %}{% endfor %}"
        ),
        ends=("<end_of_utterance>", "<|im_end|>", "<|endoftext|>"),
        images=TileTokens(),
        vllm=False,  # corrupts prompts silently: trl#6294
    ),
    "qwen2vl": Family(
        model_types=("qwen2_vl",),
        vision_modules=("model.visual",),
        mrope=True,
        shared_prefix=True,
        lora=rf"model\.language_model\..*\.{_PROJECTIONS}",
        chat_template=(
            "{% for message in messages %}{% for part in message['content'] %}"
            "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
            "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
        ),
        ends=("<|im_end|>", "<|endoftext|>"),
        images=PixelTokens(default=512),  # R1-V's and others' max_pixels of 401,408
        vllm=True,
    ),
}
