"""The policy: a model and its processor, loaded and frozen, and its end and forbidden tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.utils import logging as transformers_logging

from ..assets import ASSETS
from ..errors import UserError, nearest_allowed
from .chat import chat_text, messages
from .families import FAMILIES, misfit
from .image_tokens import bound_images
from .quantise import quantisation


def device() -> torch.device:
    """CUDA where there is a device, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_policy(
    family: str,
    model: str,
    *,
    dtype: str = "auto",
    attn_implementation: str = "auto",
    image_splitting: bool = False,
    max_image_tokens: int | None = None,
    train: Mapping[str, str] | None = None,
) -> tuple[Any, Any]:
    """Model and processor of a checkpoint, on the device, the whole model frozen.

    model: "embedded", a folder or a hub id; the others as in a run's `policy` section. Generation
    settings are neutral, whatever the checkpoint's are. Raises UserError as `load_processor` does,
    and where `train` wants weights of 4 bits that cannot be had.
    """
    transformers_logging.disable_progress_bar()
    four_bits = quantisation(FAMILIES[family], weights_dtype(dtype), (train or {}).get("language"))
    processor, source = load_processor(
        family, model, image_splitting=image_splitting, max_image_tokens=max_image_tokens
    )
    policy = AutoModelForImageTextToText.from_pretrained(
        source,
        dtype=weights_dtype(dtype),
        attn_implementation="sdpa" if attn_implementation == "auto" else attn_implementation,
        **four_bits,
        **FAMILIES[family].images.model_settings(processor),
    )
    policy.generation_config = GenerationConfig(  # none of the checkpoint's own but its ends
        eos_token_id=eos_ids(policy, processor), pad_token_id=processor.tokenizer.pad_token_id
    )
    policy = policy if four_bits else policy.to(device())
    return policy.requires_grad_(False).eval(), processor


def load_processor(
    family: str, model: str, *, image_splitting: bool = False, max_image_tokens: int | None = None
) -> tuple[Any, str]:
    """The processor of a checkpoint, set as a run sets it, and the folder or hub id of its weights.

    Raises UserError, before any weights are fetched, where there is no such checkpoint, where it is
    of another family, or where its processor needs a package that is not installed or cannot keep
    to `max_image_tokens`.
    """
    entry = FAMILIES[family]
    source = str(ASSETS / family) if model == "embedded" else model
    source = str(Path(source).expanduser()) if source.startswith("~") else source
    _check_family(family, model, source)
    processor = _load_processor(model, source)
    if not processor.chat_template:
        processor.chat_template = entry.chat_template
    bound_images(processor, entry.images, image_splitting, max_image_tokens)
    return processor, source


def family_of(model: str) -> str:
    """The family of a checkpoint, a folder or a hub id, by its config; else UserError."""
    source = str(Path(model).expanduser()) if model.startswith("~") else model
    kind = _model_type(model, source)
    for name, family in FAMILIES.items():
        if kind in family.model_types:
            return name
    types = [kind for family in FAMILIES.values() for kind in family.model_types]
    raise UserError(
        f"model {model!r} is a {kind} model, of which no family is an entry in policy/families.py; "
        f"{nearest_allowed(kind, types)}"
    )


def _check_family(family: str, model: str, source: str) -> None:
    """UserError where the config of a checkpoint is not to be had, or is another family's."""
    if problem := misfit(_model_type(model, source), family):
        raise UserError(f"policy.model {model!r} {problem}")


def _model_type(model: str, source: str) -> str:
    """What kind of model a checkpoint is; UserError where its config is not to be had."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(source)
    except OSError as error:  # what cannot be reached the command line explains
        if isinstance(error.__cause__, GatedRepoError):
            raise UserError(
                f"policy.model {model!r} is gated: ask for access at https://huggingface.co/{source}"
                ", then log in with: hf auth login"
            ) from error
        if isinstance(error.__cause__, RepositoryNotFoundError):
            raise UserError(
                f"policy.model {model!r} is neither a folder nor a model on the Hugging Face hub; "
                "a private one needs: hf auth login"
            ) from error
        raise
    model_type = config.get("model_type")
    if model_type is None:
        raise UserError(f"policy.model {model!r} has no config.json that names a model_type")
    return str(model_type)


def _load_processor(model: str, source: str) -> Any:
    """The processor of a checkpoint; UserError where it needs a package that is not installed."""
    try:
        return AutoProcessor.from_pretrained(source, padding_side="left")
    except ImportError as error:  # SmolVLM2's wants num2words, some image processors torchvision
        missing = re.search(r"pip install ([\w-]+)", str(error))
        if missing is None:
            raise
        raise UserError(
            f"the processor of policy.model {model!r} needs the package {missing[1]}: "
            f"pip install {missing[1]}"
        ) from error


def weights_dtype(name: str) -> torch.dtype:
    """The type of the frozen weights by `policy.dtype`."""
    if name != "auto":
        return getattr(torch, name)
    on_gpu = torch.cuda.is_available()
    return torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float32


def eos_ids(model: Any, processor: Any) -> list[int]:
    """Every token that ends a caption: the family's ends and the tokenizer's EOS.

    What a checkpoint's generation_config declares does not count: hub files differ in it. Nor does
    a token that the processor adds and the model has no row for.
    """
    config, tokenizer = model.config, processor.tokenizer
    entries = [entry for entry in FAMILIES.values() if config.model_type in entry.model_types]
    names = {name for entry in entries for name in entry.ends}
    ends = {i for i, token in tokenizer.added_tokens_decoder.items() if token.content in names}
    ends |= {tokenizer.eos_token_id} - {None}
    return sorted(i for i in ends if i < config.get_text_config().vocab_size)


def end_id(model: Any, processor: Any) -> int:
    """The token that the model writes behind a caption, to append to given captions.

    The first end behind an answer in the chat template; without one, the tokenizer's EOS.
    """
    ends, answer = eos_ids(model, processor), "A dog."
    conversation = [*messages("Describe the image."), {"role": "assistant", "content": answer}]
    after = chat_text(processor, conversation).rpartition(answer)[2]
    ids: list[int] = processor.tokenizer(after, add_special_tokens=False)["input_ids"]
    eos = processor.tokenizer.eos_token_id
    return next((i for i in ids if i in ends), ends[0] if eos is None else int(eos))


def forbidden_ids(model: Any, processor: Any) -> list[int]:
    """Tokens that may never be sampled: image and other special tokens but EOS, and unused rows."""
    tokenizer = processor.tokenizer
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = {
        i for k, i in vars(processor).items() if k.endswith("_token_id") and isinstance(i, int)
    }
    unused = range(len(tokenizer), model.get_output_embeddings().weight.shape[0])
    forbidden = {*added, *named, *tokenizer.all_special_ids, *unused}
    return sorted(forbidden - set(eos_ids(model, processor)))
