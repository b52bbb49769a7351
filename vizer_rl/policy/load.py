"""The policy: a model and its processor, loaded and frozen, and its end and forbidden tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from ..assets import ASSETS
from ..errors import UserError
from .families import FAMILIES


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
) -> tuple[Any, Any]:
    """Model and processor of a checkpoint, on the device, the whole model frozen.

    model: "embedded", a folder or a hub id; the others as in a run's `policy` section. Raises
    UserError where the checkpoint is of another family.
    """
    entry = FAMILIES[family]
    source = str(ASSETS / family) if model == "embedded" else model
    source = str(Path(source).expanduser()) if source.startswith("~") else source
    processor = AutoProcessor.from_pretrained(source, padding_side="left")
    if not processor.chat_template:
        processor.chat_template = entry.chat_template
    if entry.splits:
        processor.image_processor.do_image_splitting = image_splitting
    policy = AutoModelForImageTextToText.from_pretrained(
        source,
        dtype=_dtype(dtype),
        attn_implementation="sdpa" if attn_implementation == "auto" else attn_implementation,
    )
    if policy.config.model_type not in entry.model_types:
        raise UserError(
            f"policy.model {model!r} is a {policy.config.model_type} model, but family "
            f"{family!r} takes {' or '.join(entry.model_types)}"
        )
    policy.generation_config.eos_token_id = eos_ids(policy, processor)
    return policy.to(device()).requires_grad_(False).eval(), processor


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
    forbidden = {*added, *named, *tokenizer.all_special_ids, *unused}
    return sorted(forbidden - set(eos_ids(model, processor)))
