"""Families of vision-language models: what differs between them, as one frozen entry each.

What was tested of each: docs/families.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import nearest_match
from .crop_tokens import CropTokens, GridTokens
from .image_tokens import FixedTokens, ImageTokens, PixelTokens, TileTokens


@dataclass(frozen=True)
class Family:
    """A family: where its parts are, and what it needs.

    model_types: as config.json names them; vision_modules: dotted paths of all modules between
    pixels and the language model; mrope: rotary positions in time, height and width; shared_prefix:
    whether a group can share one prompt, else every caption is a row of its own; lora: regular
    expression of the modules that LoRA adapts (the language model's projections, nothing of tower
    or connector); chat_template: for a base model whose processor has none; ends: every token that
    ends a caption, in the checkpoints that have it; images: how its processor turns an image into
    tokens, with the default budget; vllm: whether TRL may sample from it with vLLM; token_types:
    the argument of its forward that tells image tokens (1) from text (0); stacked: its forward
    takes the features of a batch as one tensor, not one per image; instruct: regular expression of
    the names of checkpoints that answer questions; connector: dotted path of what lies between
    tower and language model, one of vision_modules or inside of one; connector_alone: whether it
    makes all that the language model reads of an image from the tower's last hidden states, each by
    itself.
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
    token_types: str = ""
    stacked: bool = False
    instruct: str = "instruct"
    connector: str = ""
    connector_alone: bool = False


_PROJECTIONS = r"(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
_LANGUAGE_MODEL = rf"model\.language_model\..*\.{_PROJECTIONS}"
_TOWER = ("model.vision_tower", "model.multi_modal_projector")
_ANY_NAME = ""  # of families whose every checkpoint is instruction-tuned


def _plain(image: str) -> str:
    """A chat template that adds nothing to the prompt but the image's token before it."""
    return (
        "{% for message in messages %}{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{image}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
        "{% endfor %}{% endfor %}"
    )


_SMOLVLM = Family(
    model_types=("idefics3", "smolvlm"),
    vision_modules=("model.vision_model", "model.connector"),
    mrope=False,
    shared_prefix=True,
    lora=rf"model\.text_model\..*\.{_PROJECTIONS}",
    chat_template=_plain("<image>"),
    ends=("<end_of_utterance>", "<|im_end|>", "<|endoftext|>"),
    images=TileTokens(),
    vllm=False,  # corrupts prompts silently: trl#6294
    instruct="instruct|^idefics3",
    connector="model.connector",
    connector_alone=True,
)
_QWEN2VL = Family(
    model_types=("qwen2_vl",),
    vision_modules=("model.visual",),
    mrope=True,
    shared_prefix=True,
    lora=_LANGUAGE_MODEL,
    chat_template=_plain("<|vision_start|><|image_pad|><|vision_end|>"),
    ends=("<|im_end|>", "<|endoftext|>"),
    images=PixelTokens(default=512),  # R1-V's and others' max_pixels of 401,408
    vllm=True,
    token_types="mm_token_type_ids",
    connector="model.visual.merger",
    connector_alone=True,
)

FAMILIES = {
    "smolvlm": _SMOLVLM,  # 256M, 500M and 2.2B, Base and Instruct
    "smolvlm2": replace(_SMOLVLM, model_types=("smolvlm",)),
    "idefics3": replace(  # SigLIP before Llama 3
        _SMOLVLM,
        model_types=("idefics3",),
        ends=("<end_of_utterance>", "<|end_of_text|>", "<|eot_id|>"),
    ),
    "qwen2vl": _QWEN2VL,
    "qwen2_5vl": replace(  # its tower leaves patches in the order of its windows
        _QWEN2VL, model_types=("qwen2_5_vl",), connector_alone=False
    ),
    "qwen3vl": replace(  # its language model reads earlier layers of the tower too
        _QWEN2VL, model_types=("qwen3_vl",), connector_alone=False
    ),
    "llava_onevision": Family(
        model_types=("llava_onevision",),
        vision_modules=_TOWER,
        mrope=False,
        shared_prefix=True,
        lora=_LANGUAGE_MODEL,
        chat_template=_plain("<image>"),
        ends=("<|im_end|>", "<|endoftext|>"),
        images=GridTokens(),
        vllm=True,
        instruct=_ANY_NAME,
        connector=_TOWER[1],
    ),
    "internvl": Family(  # the -hf checkpoints
        model_types=("internvl",),
        vision_modules=_TOWER,
        mrope=False,
        shared_prefix=True,
        lora=_LANGUAGE_MODEL,
        chat_template=_plain("<IMG_CONTEXT>"),
        ends=("<|im_end|>", "<|endoftext|>"),
        images=CropTokens(),
        vllm=True,
        stacked=True,
        instruct="^(?!.*pretrained)",
        connector=_TOWER[1],
    ),
    "gemma3": Family(
        model_types=("gemma3",),
        vision_modules=_TOWER,
        mrope=False,
        shared_prefix=False,  # an image's tokens attend to each other both ways; windows
        lora=_LANGUAGE_MODEL,
        chat_template=_plain("<start_of_image>"),
        ends=("<end_of_turn>", "<eos>"),
        images=FixedTokens(),
        vllm=True,
        token_types="token_type_ids",
        stacked=True,
        instruct="-it$|-it-",
        connector=_TOWER[1],
        connector_alone=True,
    ),
}


def family_of(model_type: str) -> Family:
    """The first entry that takes a model type; ValueError where none does."""
    for family in FAMILIES.values():
        if model_type in family.model_types:
            return family
    raise ValueError(f"no family takes {model_type!r}")


def misfit(model_type: object, family: str) -> str:
    """Why a checkpoint of a model type is not one of a family, and what to do; "" where it is."""
    allowed = FAMILIES[family].model_types
    if model_type in allowed:
        return ""
    others = [name for name, entry in FAMILIES.items() if model_type in entry.model_types]
    if others:
        advice = f"set family={others[0]}"
    else:
        types = {kind: name for name, entry in FAMILIES.items() for kind in entry.model_types}
        nearest = nearest_match(model_type, types)
        example = f", like that of {types[nearest]}" if nearest else ""
        advice = (
            f"no family takes it: an entry in vizer_rl/policy/families.py names its vision modules,"
            f" LoRA's modules, what ends a caption and how an image becomes tokens{example}"
        )
    return f"is a {model_type} model, but family {family!r} takes {' or '.join(allowed)}; {advice}"
