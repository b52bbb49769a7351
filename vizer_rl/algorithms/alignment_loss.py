"""Alignment loss of ViZer (arXiv 2510.12931): 1 - cos of vision features and mapped captions.

The states are the policy's last hidden ones at the caption's tokens. Of the paper's two readings
`loose` pools them as they are (they have seen the image, so the cosine can rise without the words
improving); `literal` feeds them through the model again as soft embeddings, with no image, and
pools what comes out. The image's features are frozen; the mapper (rewards/lib/mapper.py) is trained
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

from ..policy.lora import adapter_off
from ..policy.vision import encode_images, process_images

ImageFeatures = Callable[[Sequence[str], Sequence[Image]], Tensor]


class AlignmentLoss:
    """A trained mapper, how caption states are read and pooled for it, what it aims at."""

    def __init__(self, mapper: Mapper, features: ImageFeatures, reading: str, pooling: str) -> None:
        """`features`: image ids and images to frozen features (N, V)."""
        self.mapper, self.features = mapper.requires_grad_(False), features
        self.reading, self.pooling = reading, pooling

    def row_features(self, rows: Sequence[dict[str, Any]]) -> Tensor:
        """(B, V) frozen features of the images of a data set's rows."""
        return self.features([row["image_id"] for row in rows], [row["image"] for row in rows])

    def batch_loss(
        self, model: Any, hidden: Tensor | None, inputs: dict[str, Any]
    ) -> tuple[Tensor, dict[str, float]]:
        """1 - cos, a scalar, and metrics: the cosine, and `Mapper.variance` (collapse: 0).

        model: the PeftModel; hidden (B, T, D): the states that each token was predicted from;
        inputs: TRL's batch, with `completion_mask` (B, T) and `image_features` (B, V).
        """
        assert hidden is not None
        features = inputs["image_features"]
        states = pooled(model, hidden, inputs["completion_mask"], self.reading, self.pooling)
        cosine = self.mapper.cosine(states, features).mean()
        return 1 - cosine, {
            "cosine": cosine.item(),
            "variance": self.mapper.variance(states, features),
        }


def pooled(model: Any, hidden: Tensor, mask: Tensor, reading: str, pooling: str) -> Tensor:
    """(B, D) float32: the caption's states as `reading` has them, their mean or the last of them.

    hidden (B, T, D), mask (B, T) as in `batch_loss`: hidden[:, t + 1] is token t's own state.
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
    """Mean output of the connector, what the language model reads: (N, V), once per image id.

    As it was before training, whether it learns or not: what is aimed at must not move.
    """
    cache: dict[str, Tensor] = {}
    base = model.get_base_model()

    @torch.no_grad()
    def features(ids: Sequence[str], images: Sequence[Image]) -> Tensor:
        for row, name in enumerate(ids):
            if name not in cache:
                inputs = process_images(processor, [images[row]], [str(processor.image_token)])
                with adapter_off(base):
                    ((_, tokens),) = encode_images(base, inputs)
                cache[name] = tokens.mean(0).float()
        return torch.stack([cache[name] for name in ids])

    return features
