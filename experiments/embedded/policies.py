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
TESTED = 512  # scenes of a pool that nothing trains on


def build(
    family: str, data: Pool, work: Path, seed: int, steps: tuple[int, int]
) -> tuple[PolicyParts, float]:
    """Pre-train one policy: `steps` of the tower and of the language model; and the seconds."""
    torch.manual_seed(seed)
    parts = architectures.ARCHITECTURES[family]()
    rng = np.random.default_rng(seed)
    cached, seconds = train_tower(family, parts, data, work, rng, steps[0])
    if family == "qwen2vl":
        parts.vision.merger.requires_grad_(True)
    loss = language_loss(parts, cached, data.scenes, rng, len(data.scenes) - TESTED)
    seconds += fit(f"{family}-language", Trainable(parts.model), loss, steps[1], 2e-3, work)
    return parts, seconds


def train_tower(
    name: str,
    parts: PolicyParts,
    data: Pool,
    work: Path,
    rng: np.random.Generator,
    steps: int,
) -> tuple[torch.Tensor, float]:
    """Teach the tower to see and freeze it: its features (N, 64, WIDTH) of the pool, and seconds.

    Runs, and leaves the features, on the model's device; all but the last TESTED scenes are used.
    """
    n, device = len(data.scenes) - TESTED, parts.model.device
    labels = dense_labels(data.scenes, GRID).view(-1, GRID * GRID, LABELS).to(device)
    tower = nn.ModuleDict({"vision": parts.vision, "dense_head": nn.Linear(WIDTH, DENSE)})
    tower.to(device)

    def loss(step: int) -> torch.Tensor:
        rows = rng.integers(n, size=TOWER_BATCH)
        features = parts.tower(to_pixels(data.pixels[rows]).to(device))
        return dense_loss(tower["dense_head"](features), labels[rows])

    seconds = fit(f"{name}-tower", tower, loss, steps, 2e-3, work)
    cached = tower_features(parts, data)
    with torch.no_grad():
        accuracy = dense_accuracy(tower["dense_head"](cached[n:].float()), labels[n:])
        title = f"{name} tower: shape, colour, size, fill, part of object cells"
        print(f"{title} {accuracy}", flush=True)
    parts.vision.requires_grad_(False)
    return cached, seconds


@torch.no_grad()
def tower_features(parts: PolicyParts, data: Pool) -> torch.Tensor:
    """Patch features (N, 64, WIDTH) of a pool in fp16, on the model's device."""
    chunks = [data.pixels[i : i + 500] for i in range(0, len(data.scenes), 500)]
    device = parts.model.device
    return torch.cat([parts.tower(to_pixels(chunk).to(device)).half() for chunk in chunks])


class Trainable(nn.Module):
    """The trainable parameters alone, under their own names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "-"), parameter)


def language_loss(
    parts: PolicyParts,
    cached: torch.Tensor,
    scenes: list[Scene],
    rng: np.random.Generator,
    n: int,
    batch: int = CAPTION_BATCH,
) -> Callable[[int], torch.Tensor]:
    """Cross-entropy of web captions given frozen patch features (N, 64, WIDTH), of the first n."""
    device = parts.model.device
    prompt = architectures.prompt_inputs(parts.processor)["input_ids"][0].to(device)
    tokenizer, embed = parts.processor.tokenizer, parts.model.get_input_embeddings()
    image_mask = prompt == parts.model.config.image_token_id
    lead = "" if prompt[-1] == tokenizer.convert_tokens_to_ids("Ċ") else " "

    def loss(step: int) -> torch.Tensor:
        rows = rng.integers(n, size=batch)
        captions = [lead + web_caption(scenes[i], rng) + tokenizer.eos_token for i in rows]
        ids = tokenizer(captions, padding=True, padding_side="right", return_tensors="pt").to(
            device
        )
        input_ids = torch.cat([prompt.expand(len(rows), -1), ids["input_ids"]], 1)
        embeds = embed(input_ids)
        embeds[:, : len(prompt)][:, image_mask] = parts.connector(cached[rows].float())
        hidden = parts.decoder(embeds)[:, len(prompt) - 1 : -1]
        labels = ids["input_ids"].masked_fill(ids["attention_mask"] == 0, -100)
        return nn.functional.cross_entropy(
            parts.model.lm_head(hidden).flatten(0, 1), labels.flatten()
        )

    return loss
