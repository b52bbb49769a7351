"""ViZer's loss (arXiv 2510.12931): 1 - cos of an image's features and its caption's mapped states.

The states are the policy's last hidden ones at the caption's tokens. Of the paper's two readings
`loose` pools them as they are (they have seen the image, so the cosine can rise without the words
improving); `literal` feeds them through the model again as soft embeddings, with no image, and
pools what comes out. The image's features are frozen; the mapper (rewards/_mapper.py) is trained
before (stage 1, with the adapter off) and then stays as it is. What the paper does not say and we
chose: the features are centred on their mean, the mapper is frozen in stage 2, the end of a caption
is not pooled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from rewards.lib.mapper import Mapper

from ..config.schema import Mapper as Settings

ImageFeatures = Callable[[Sequence[str], Sequence[Image]], Tensor]


class AlignmentLoss:
    """A trained mapper, how caption states are read and pooled for it, what it aims at."""

    def __init__(self, mapper: Mapper, features: ImageFeatures, reading: str, pooling: str) -> None:
        """`features`: image ids and images to frozen features (N, V)."""
        self.mapper, self.features = mapper.requires_grad_(False), features
        self.reading, self.pooling = reading, pooling

    def loss(
        self, model: Any, hidden: Tensor, mask: Tensor, features: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """1 - cos, a scalar, and numbers to log: the cosine, and `Mapper.variance` (collapse: 0).

        model: the PeftModel; hidden (B, T, D): the states that each token was predicted from;
        mask (B, T): of the tokens; features (B, V): of the images.
        """
        states = pooled(model, hidden, mask, self.reading, self.pooling)
        cosine = self.mapper.cosine(states, features).mean()
        numbers = {
            "cosine": cosine.item(),
            "variance": self.mapper.variance(states, features),
        }
        return 1 - cosine, numbers


def pooled(model: Any, hidden: Tensor, mask: Tensor, reading: str, pooling: str) -> Tensor:
    """(B, D) float32: the caption's states as `reading` has them, their mean or the last of them.

    hidden (B, T, D), mask (B, T) as in `Alignment.loss`: hidden[:, t + 1] is token t's own state.
    """
    hidden, mask = hidden[:, 1:], mask[:, 1:].clone()
    mask[:, :1] = 1  # of a caption that is nothing but its end, the end's own
    if reading == "literal":
        backbone = model.get_base_model().base_model
        hidden = backbone(
            inputs_embeds=hidden, attention_mask=mask, use_cache=False
        ).last_hidden_state
    hidden = hidden.float()
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def connector_features(model: Any, processor: Any) -> ImageFeatures:
    """Mean output of the connector, what the language model reads: (N, V), once per image id."""
    known: dict[str, Tensor] = {}
    base = model.get_base_model()

    @torch.no_grad()
    def features(ids: Sequence[str], images: Sequence[Image]) -> Tensor:
        for row, name in enumerate(ids):
            if name not in known:
                told = processor.image_processor(images=[[images[row]]], return_tensors="pt")
                grid = told.get("image_grid_thw", told.get("pixel_attention_mask"))
                grid = grid if grid is None else grid.to(model.device)
                out = base.model.get_image_features(told["pixel_values"].to(model.device), grid)
                known[name] = torch.cat([*out.pooler_output]).mean(0).float()
        return torch.stack([known[name] for name in ids])

    return features


def settings_told(settings: Settings) -> dict[str, Any]:
    """What a kept mapper must agree in with the run that takes it up again."""
    return settings.model_dump(include={"source", "reading", "pooling", "target", "width"})
