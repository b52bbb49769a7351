"""Pre-training of the embedded scorers: two small open_clip models, as right as real ones.

As CLIP's: captions of the web (`web.py`, with all that they leave out and get wrong), negatives
from the batch and no others. What real scorers fail at, order, relations, who has which attribute
and what is not there, theirs fail at too; KINDS sets how far, so that the rows of `quality.py` meet
those of ViT-B/32 and ViT-H/14. The image tower has learned to see from dense labels and is locked
(LiT, arXiv 2111.07991); of it only the part that pools is trained with the text tower.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
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
    dense_accuracy,
    dense_labels,
    dense_loss,
    fit,
    to_pixels,
)
from experiments.embedded.web import DETAILED, TERSE, describe
from vizer_rl.data.scenes import SIDE, Scene, Thing, phrase, random_kind, sample

CONTEXT = 32
PREPROCESS = {"size": SIDE, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}


@dataclass(frozen=True)
class Kind:
    """What makes a scorer: its image tower, and the captions and batches it learns from.

    grid: cells a side of its patch features, width: channels of these. Of the captions, detailed:
    share that is; complete: share of its attributes that such a one names, related: how often it
    names the relation, salient: how often large objects come first. wrong: share of
    objects with a wrong attribute; added: of captions that name an object that is not there;
    shuffled: that are keywords, words out of order, and loose: share of these of another image.
    """

    vision: dict[str, Any]
    grid: int
    width: int
    batch: int
    detailed: float
    complete: float
    related: float
    salient: float
    wrong: float
    added: float
    shuffled: float
    loose: float


KINDS = {
    "a": Kind(  # a ResNet, as wrong as ViT-B/32 of OpenAI
        {"layers": [1, 1, 2, 1], "width": 24, "patch_size": None},
        grid=6,
        width=24 * 16,
        batch=16,
        detailed=1.0,
        complete=0.993,
        related=0.28,
        salient=0.14,
        wrong=0.2,
        added=0.24,
        shuffled=0.25,
        loose=0.7,
    ),
    "b": Kind(  # a ViT, as wrong as ViT-H/14 of LAION-2B
        {
            "layers": 4,
            "width": 128,
            "head_width": 32,
            "patch_size": 12,
            "mlp_ratio": 3.0,
            "attentional_pool": True,
            "attn_pooler_queries": 1,
            "attn_pooler_heads": 8,
        },
        grid=8,
        width=128,
        batch=96,
        detailed=0.7,
        complete=0.9,
        related=0.3,
        salient=0.3,
        wrong=0.02,
        added=0.0,
        shuffled=0.1,
        loose=0.6,
    ),
}


def create(name: str, folder: Path) -> tuple[CLIP, Callable[[list[str]], torch.Tensor]]:
    """An untrained scorer and its tokenizer, whose files are put into `folder`."""
    bpe = tokens.tokenizer(["<pad>", "<bos>"], lower=True, around=("<bos>", "<eos>"))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    tokens.check(fast)
    model = {
        "embed_dim": 192,
        "vision_cfg": {"image_size": SIDE, **KINDS[name].vision},
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


class ImageTower(nn.Module):
    """An open_clip image tower in two parts: what is locked, and what pools its features."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual
        self.resnet = hasattr(visual, "layer4")

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (N, 3, SIDE, SIDE) in [0, 1] -> (N, cells, width), a ViT's class first."""
        x = (pixels - 0.5) / 0.5
        if not self.resnet:
            return self.visual.transformer(self.visual._embeds(x))
        for layer in (self.visual.stem, *(getattr(self.visual, f"layer{i}") for i in (1, 2, 3))):
            x = layer(x)
        return x.flatten(2).transpose(1, 2)

    def pooled(self, features: torch.Tensor) -> torch.Tensor:
        """What `features` gives -> normalised embeddings (N, 192)."""
        if self.resnet:
            side = int(features.shape[1] ** 0.5)
            x = features.transpose(1, 2).unflatten(2, (side, side))
            pooled = self.visual.attnpool(self.visual.layer4(x))
        else:
            pooled = self.visual._pool(features)[0] @ self.visual.proj
        return nn.functional.normalize(pooled, dim=-1)


def web_text(kind: Kind, scene: Scene, rng: np.random.Generator) -> str:
    """A caption of this scene as this scorer learns from it."""
    keywords = rng.random() < kind.shuffled
    if keywords and rng.random() < kind.loose:
        scene = sample(int(rng.integers(1 << 30)))
    habit = replace(TERSE, wrong=kind.wrong)
    if rng.random() < kind.detailed:
        habit = replace(
            DETAILED,
            size=kind.complete,
            fill=kind.complete,
            colour=max(kind.complete, DETAILED.colour),
            inside=kind.related,
            beside=kind.related,
            salient=kind.salient,
            wrong=kind.wrong,
        )
    caption = describe(scene, habit, rng)
    if rng.random() < kind.added:
        caption += f" and {phrase(Thing(*random_kind(rng), 0, 0, 1))}"
    return " ".join(rng.permutation(caption.split())) if keywords else caption


def build(
    name: str, data: Pool, work: Path, folder: Path, seed: int, steps: tuple[int, int]
) -> float:
    """Train scorer `name` on this pool and save it for open_clip's local-directory path.

    First its image tower on dense labels, then text tower and pooling on captions. Returns the
    seconds it took.
    """
    torch.manual_seed(seed)
    kind, (model, tokenize) = KINDS[name], create(name, folder)
    image_tower, head = ImageTower(model.visual), nn.Linear(KINDS[name].width, DENSE)
    labels = dense_labels(data.scenes, kind.grid).view(-1, kind.grid**2, LABELS)
    rng, n = np.random.default_rng(seed), len(data.scenes) - 512

    def tower_loss(step: int) -> torch.Tensor:
        rows = rng.integers(n, size=32)
        features = image_tower.features(to_pixels(data.pixels[rows]))
        return dense_loss(head(features[:, -(kind.grid**2) :]), labels[rows])

    tower = nn.ModuleDict({"visual": model.visual, "dense_head": head})
    seconds = fit(f"scorer-{name}-tower", tower, tower_loss, steps[0], 2e-3, work)
    model.eval()
    with torch.no_grad():
        chunks = [data.pixels[i : i + 500] for i in range(0, len(data.scenes), 500)]
        cached = torch.cat([image_tower.features(to_pixels(c)).half() for c in chunks])
        accuracy = dense_accuracy(head(cached[n:, -(kind.grid**2) :].float()), labels[n:])
        print(f"scorer-{name} tower: shape, colour, size, fill, part {accuracy}", flush=True)
    model.train()

    def loss(step: int) -> torch.Tensor:
        rows = rng.integers(n, size=kind.batch)
        captions = model.encode_text(
            tokenize([web_text(kind, data.scenes[i], rng) for i in rows]), normalize=True
        )
        images = image_tower.pooled(cached[rows].float())
        logits = model.logit_scale.exp().clamp(max=100) * images @ captions.T
        target = torch.arange(kind.batch)
        cross_entropy = nn.functional.cross_entropy
        return cross_entropy(logits, target) + cross_entropy(logits.T, target)

    seconds += fit(f"scorer-{name}", _pooling(model), loss, steps[1], 1.5e-3, work)
    state = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return seconds


def _pooling(model: CLIP) -> nn.Module:
    """The model with all but the text tower and what pools the image's features locked."""
    locked = ("conv", "bn", "layer1", "layer2", "layer3", "class_", "positional_", "ln_pre")
    for name, parameter in model.visual.named_parameters():
        if name.startswith((*locked, "transformer")):
            parameter.requires_grad_(False)
    return model
