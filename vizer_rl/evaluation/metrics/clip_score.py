"""CLIPScore and RefCLIPScore (Hessel et al. 2021) under an open_clip model.

CLIPScore is 2.5 · max(cos(image, caption), 0); RefCLIPScore its harmonic mean with the largest
max(cos(caption, reference), 0). Captions and references begin with "A photo depicts", as in the
paper, and are cut where the model's context ends. Published numbers are of ViT-B-32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rewards import Encoder

WEIGHT = 2.5
PREFIX = "A photo depicts "


def clip_score(features_ND: torch.Tensor, captions_ND: torch.Tensor) -> np.ndarray:
    """(N,) CLIPScore of unit vectors of images and captions."""
    return WEIGHT * (features_ND * captions_ND).sum(-1).clamp(min=0).double().cpu().numpy()


def caption_vectors(scorer: Encoder, captions: Sequence[str]) -> torch.Tensor:
    """(N, D) unit vectors of captions behind the prefix."""
    return scorer.text_features([PREFIX + caption for caption in captions])


class RefClipScore:
    """Vectors of the references of N images; called with CLIPScores and the captions' vectors."""

    def __init__(self, scorer: Encoder, references: Sequence[Sequence[str]]) -> None:
        texts = [text for captions in references for text in captions]
        sizes = [len(captions) for captions in references]
        self.vectors = caption_vectors(scorer, texts).split(sizes)

    def __call__(self, clip_scores: np.ndarray, captions_ND: torch.Tensor) -> np.ndarray:
        """(N,) harmonic mean of CLIPScore and the nearest reference's cosine; 0 where one is."""
        pairs = zip(self.vectors, captions_ND, strict=True)
        nearest = np.array([max(0.0, float((own @ vector).max())) for own, vector in pairs])
        total = clip_scores + nearest
        return 2 * clip_scores * nearest / np.where(total == 0, 1, total)
