"""The policy: loads a model and its processor, captions images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from ..assets import ASSETS
from ..errors import UserError
from .families import FAMILIES


def device() -> torch.device:
    """CUDA where it is there, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_policy(family: str, settings: Any) -> tuple[Any, Any]:
    """Model and processor of a run's `policy` section, on the device, the whole model frozen.

    Raises UserError where the checkpoint is of another family.
    """
    entry = FAMILIES[family]
    source = str(ASSETS / family) if settings.model == "embedded" else settings.model
    source = str(Path(source).expanduser()) if source.startswith("~") else source
    processor = AutoProcessor.from_pretrained(source, padding_side="left")
    if not processor.chat_template:
        processor.chat_template = entry.chat_template
    if entry.splits:
        processor.image_processor.do_image_splitting = settings.image_splitting
    kernel = settings.attn_implementation
    model = AutoModelForImageTextToText.from_pretrained(
        source,
        dtype=_dtype(settings.dtype),
        attn_implementation="sdpa" if kernel == "auto" else kernel,
    )
    if model.config.model_type not in entry.model_types:
        raise UserError(
            f"policy.model {settings.model!r} is a {model.config.model_type} model, but family "
            f"{family!r} takes {' or '.join(entry.model_types)}"
        )
    model.generation_config.eos_token_id = eos_ids(model, processor)
    return model.to(device()).requires_grad_(False).eval(), processor


def _dtype(name: str) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)
    on_gpu = torch.cuda.is_available()
    return torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float32


def eos_ids(model: Any, processor: Any) -> list[int]:
    """Every token that ends a caption: the tokenizer's and those the checkpoint declares."""
    declared = model.generation_config.eos_token_id
    declared = declared if isinstance(declared, list) else [declared]
    return sorted({processor.tokenizer.eos_token_id, *(i for i in declared if i is not None)})


def forbidden_ids(model: Any, processor: Any) -> list[int]:
    """Tokens that may never be sampled: image and other special tokens but EOS, and unused rows."""
    tokenizer = processor.tokenizer
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = {
        i for k, i in vars(processor).items() if k.endswith("_token_id") and isinstance(i, int)
    }
    unused = range(len(tokenizer), model.get_output_embeddings().weight.shape[0])
    every = {*added, *named, *tokenizer.all_special_ids, *unused}
    return sorted(every - set(eos_ids(model, processor)))
