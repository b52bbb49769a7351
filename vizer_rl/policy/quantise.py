"""QLoRA (Dettmers et al. 2023, arXiv 2305.14314): the language model's frozen weights in 4 bits."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from ..errors import UserError
from .families import Family


def quantisation(family: Family, dtype: torch.dtype, language: str | None) -> dict[str, Any]:
    """What `from_pretrained` takes to load the language model for `language`: qlora; else {}.

    NF4 with quantised constants, computed in `dtype`; tower, connector, embeddings and head stay as
    they are. Raises UserError where bitsandbytes is missing.
    """
    if language != "qlora":
        return {}
    if find_spec("bitsandbytes") is None:
        raise UserError(
            "policy.train.language: qlora needs the package bitsandbytes: pip install bitsandbytes "
            "(lora works without)"
        )
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[*family.vision_modules, "lm_head"],
    )
    cuda = torch.cuda.is_available()  # of several processes each has a device of its own
    where = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    return {"quantization_config": config, "device_map": {"": where}}
