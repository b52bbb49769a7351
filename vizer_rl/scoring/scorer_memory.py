"""Memory of an image-text scorer by its config, without its weights."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..assets import ASSETS
from ..policy.live_bytes import LiveBytes, fake_tensors
from .clip import BATCH, TEXTS


def scorer_bytes(name: str, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of a scorer's weights, and of its passes over BATCH images and TEXTS texts, whole."""
    kind, _, rest = name.partition(":")
    folder = ASSETS / f"scorer-{rest}" if kind == "embedded" else Path(rest).expanduser()
    if kind in ("embedded", "local-dir"):
        settings = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    else:
        settings = open_clip.get_model_config(name.split("/")[0])
    build = open_clip.CustomTextCLIP if settings.pop("custom_text", False) else open_clip.CLIP
    with torch.device("meta"):
        model = build(**settings).to(dtype).requires_grad_(False).eval()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake_tensors(model, mode)
    size, context = model.visual.image_size, settings["text_cfg"].get("context_length", 77)
    height, width = size if isinstance(size, tuple) else (size, size)
    with mode, LiveBytes(model) as live, torch.no_grad():
        model.encode_image(torch.empty(BATCH, 3, height, width, dtype=dtype))
        model.encode_text(torch.zeros(TEXTS, context, dtype=torch.long))
    return sum(p.nbytes for p in model.parameters()), live.peak
