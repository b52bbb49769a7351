"""Pre-training of the embedded scorers: two small open_clip models, right on one attribute.

Trained as CLIP is, on true captions (whole or in part), with in-batch negatives and with captions
that are wrong in one thing; an auxiliary dense loss teaches the image tower to see quickly.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedTokenizerFast

from experiments.embedded import tokens
from experiments.embedded.pretrain import (
    DENSE,
    LABELS,
    Pool,
    dense_labels,
    dense_loss,
    fit,
    to_pixels,
)
from experiments.embedded.web import POOLS, TRUE_PART, TRUE_WHOLE, Habit, describe, swapped
from vizer_rl.data.scenes import RELATIONS, SIDE, Scene, Thing, random_kind

CONTEXT, NEGATIVES, BATCH = 24, 3, 64
HARD = ("shape",) * 3 + ("fill",) * 2  # the attributes learned last are drawn more often
VISION: dict[str, dict[str, Any]] = {
    "a": {"layers": [1, 1, 2, 1], "width": 24, "patch_size": None},  # a ResNet
    "b": {  # a ViT
        "layers": 4,
        "width": 128,
        "head_width": 32,
        "patch_size": 12,
        "mlp_ratio": 3.0,
        "attentional_pool": True,
        "attn_pooler_queries": 1,
        "attn_pooler_heads": 8,
    },
}
GRIDS = {"a": 6, "b": 8}
PREPROCESS = {"size": SIDE, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}


def create(name: str, folder: Path) -> tuple[CLIP, Callable[[list[str]], torch.Tensor]]:
    """An untrained scorer and its tokenizer, whose files are put into `folder`."""
    bpe = tokens.tokenizer(["<pad>", "<bos>"], lower=True, around=("<bos>", "<eos>"))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    tokens.check(fast)
    model = {
        "embed_dim": 192,
        "vision_cfg": {"image_size": SIDE, **VISION[name]},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": len(fast),
            "hf_tokenizer_name": "local",
            "width": 112,
            "heads": 4,
            "layers": 2,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    config = {"model_cfg": model, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1))
    return CLIP(**model), open_clip.get_tokenizer(f"local-dir:{folder}")


def caption_and_negatives(scene: Scene, rng: np.random.Generator) -> list[str]:
    """A true caption and NEGATIVES hard negatives: the same words, but one thing is wrong."""
    habit = TRUE_WHOLE if rng.random() < 0.5 else TRUE_PART
    seed = int(rng.integers(1 << 31))

    def caption(scene: Scene, habit: Habit) -> str:
        return describe(scene, habit, np.random.default_rng(seed))

    true, negatives = caption(scene, habit), []
    kinds = [*POOLS, *HARD, "count", "object", *(["relation"] * 4 if scene.relation else [])]
    for _ in range(12):
        kind = str(rng.choice(kinds))
        # a wrong relation is named even where the true caption has "and": better none than that
        named = replace(habit, beside=1.0, inside=1.0) if kind == "relation" else habit
        false = caption(corrupt(scene, kind, rng), named)
        if kind == "relation" and not any(r in false for r in RELATIONS):
            continue  # true all the same, if it names no relation
        if false != true and false not in negatives:
            negatives.append(false)
        if len(negatives) == NEGATIVES:
            break
    while len(negatives) < NEGATIVES:
        negatives.append(true + " and " + caption(random_scene(rng), habit))
    return [true, *negatives]


def corrupt(scene: Scene, kind: str, rng: np.random.Generator) -> Scene:
    """The scene with one thing changed: an attribute, relation, count, or one object more."""
    if kind == "count":
        first = scene.objects[0]
        same = [o for o in scene.objects if o.kind == first.kind]
        if len(same) > 1:
            return replace(scene, objects=scene.objects[1:])
        if scene.relation is None:
            return replace(scene, objects=(first, *scene.objects))
        kind = "object"
    if kind == "object":
        added = random_scene(rng).objects[0]
        if rng.random() < 0.5 and len(scene.objects) < 3:
            return replace(scene, objects=(*scene.objects, added))
        return replace(scene, objects=(*scene.objects[:-1], added))
    return swapped(scene, kind, rng)


def random_scene(rng: np.random.Generator) -> Scene:
    """One object of a random kind, nowhere in particular."""
    return Scene((Thing(*random_kind(rng), 0, 0, 1),), None, 0, 0)


def build(
    name: str, data: Pool, work: Path, folder: Path, seed: int, steps: tuple[int, int]
) -> float:
    """Train scorer `name` on this pool and save it for open_clip's local-directory path.

    First its image tower on dense labels alone (jointly from nothing it is slow to see shapes),
    then both towers. Returns the seconds it took.
    """
    torch.manual_seed(seed)
    model, tokenize = create(name, folder)
    grid, width = GRIDS[name], VISION[name]["width"]
    labels = dense_labels(data.scenes, grid).view(-1, grid * grid, LABELS)
    features: list[torch.Tensor] = []
    if name == "b":
        model.visual.transformer.register_forward_hook(lambda _m, _i, o: features.append(o[:, 1:]))
    else:
        width *= 16
        model.visual.layer3.register_forward_hook(
            lambda _m, _i, o: features.append(o.flatten(2).transpose(1, 2))
        )
        model.visual.to(memory_format=torch.channels_last)
    head = nn.Linear(width, DENSE)
    rng = np.random.default_rng(seed)

    def encode_images(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        features.clear()
        images = model.encode_image((to_pixels(data.pixels[rows]) - 0.5) / 0.5, normalize=True)
        return images, dense_loss(head(features[0]), labels[rows])

    def tower_loss(step: int) -> torch.Tensor:
        return encode_images(rng.integers(len(data.scenes), size=BATCH // 2))[1]

    def loss(step: int) -> torch.Tensor:
        rows = rng.integers(len(data.scenes), size=BATCH)
        groups = [caption_and_negatives(data.scenes[i], rng) for i in rows]
        ids = tokenize([group[k] for k in range(NEGATIVES + 1) for group in groups])
        images, dense = encode_images(rows)
        captions = model.encode_text(ids, normalize=True)
        to_text = model.logit_scale.exp().clamp(max=100) * images @ captions.T
        target = torch.arange(BATCH)
        contrast = nn.functional.cross_entropy(to_text, target)
        contrast = contrast + nn.functional.cross_entropy(to_text[:, :BATCH].T, target)
        return contrast + dense

    tower = nn.ModuleDict({"visual": model.visual, "dense_head": head})
    seconds = fit(f"scorer-{name}-tower", tower, tower_loss, steps[0], 2e-3, work)
    towers = nn.ModuleDict({"clip": model, "dense_head": head})
    seconds += fit(f"scorer-{name}", towers, loss, steps[1], 1.5e-3, work)
    state = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return seconds
