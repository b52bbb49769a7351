"""Pre-training of the embedded policies: captioners that see well and say little.

Two stages, as real ones: the vision tower learns to see (here from dense labels, where SigLIP or
DFN learn from billions of pairs), then connector and language model learn to caption like the web
(`web.py`) on the frozen tower's features.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from experiments.embedded import architectures
from experiments.embedded.architectures import GRID, WIDTH, PolicyParts
from experiments.embedded.pretrain import (
    DENSE,
    LABELS,
    Pool,
    dense_accuracy,
    dense_labels,
    dense_loss,
    fit,
    to_pixels,
)
from experiments.embedded.web import web_caption
from vizer_rl.data.scenes import Scene

TOWER_BATCH, CAPTION_BATCH = 32, 64  # small enough to stay in a CPU's cache


def build(
    family: str, data: Pool, work: Path, seed: int, steps: tuple[int, int]
) -> tuple[PolicyParts, float]:
    """Pre-train one policy: `steps` of the tower and of the language model; and the seconds."""
    torch.manual_seed(seed)
    parts = architectures.ARCHITECTURES[family]()
    n = len(data.scenes) - 512
    labels = dense_labels(data.scenes, GRID).view(-1, GRID * GRID, LABELS)
    tower = nn.ModuleDict({"vision": parts.vision, "dense_head": nn.Linear(WIDTH, DENSE)})
    rng = np.random.default_rng(seed)

    def tower_loss(step: int) -> torch.Tensor:
        rows = rng.integers(n, size=TOWER_BATCH)
        features = parts.tower(to_pixels(data.pixels[rows]))
        return dense_loss(tower["dense_head"](features), labels[rows])

    seconds = fit(f"{family}-tower", tower, tower_loss, steps[0], 2e-3, work)
    with torch.no_grad():
        chunks = [data.pixels[i : i + 500] for i in range(0, len(data.scenes), 500)]
        cached = torch.cat([parts.tower(to_pixels(chunk)).half() for chunk in chunks])
        accuracy = dense_accuracy(tower["dense_head"](cached[n:].float()), labels[n:])
        title = f"{family} tower: shape, colour, size, fill, part of object cells"
        print(f"{title} {accuracy}", flush=True)
    parts.vision.requires_grad_(False)
    if family == "qwen2vl":
        parts.vision.merger.requires_grad_(True)
    loss = language_loss(parts, cached, data.scenes, rng, n)
    seconds += fit(f"{family}-language", _Trainable(parts.model), loss, steps[1], 2e-3, work)
    return parts, seconds


class _Trainable(nn.Module):
    """The trainable parameters alone, under their own names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "-"), parameter)


def language_loss(
    parts: PolicyParts, cached: torch.Tensor, scenes: list[Scene], rng: np.random.Generator, n: int
) -> Callable[[int], torch.Tensor]:
    """Cross-entropy of web captions given frozen patch features (N, 64, WIDTH)."""
    prompt = architectures.prompt_inputs(parts.processor)["input_ids"][0]
    tokenizer, embed = parts.processor.tokenizer, parts.model.get_input_embeddings()
    image_mask = prompt == parts.model.config.image_token_id
    lead = "" if prompt[-1] == tokenizer.convert_tokens_to_ids("Ċ") else " "

    def loss(step: int) -> torch.Tensor:
        rows = rng.integers(n, size=CAPTION_BATCH)
        captions = [lead + web_caption(scenes[i], rng) + tokenizer.eos_token for i in rows]
        ids = tokenizer(captions, padding=True, padding_side="right", return_tensors="pt")
        input_ids = torch.cat([prompt.expand(len(rows), -1), ids["input_ids"]], 1)
        embeds = embed(input_ids)
        embeds[:, : len(prompt)][:, image_mask] = parts.connector(cached[rows].float())
        hidden = parts.decoder(embeds)[:, len(prompt) - 1 : -1]
        labels = ids["input_ids"].masked_fill(ids["attention_mask"] == 0, -100)
        return nn.functional.cross_entropy(
            parts.model.lm_head(hidden).flatten(0, 1), labels.flatten()
        )

    return loss
