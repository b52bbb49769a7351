"""Label-free metrics of captions: retrieval among look-alikes, repetition, use of the image, doubt.

One number per caption each, beside its length and its held-out score; diversity is of a whole set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from rewards import Encoder
from rewards import ReferencePolicy as Policy
from rewards.lib.chunks import Chunked
from rewards.lib.lexicon import core, words_of
from rewards.lib.text import content_tokens
from rewards.lib.word_classes import WordClasses
from rewards.repetition import Repetition

from .before_after import Columns
from .doubtful_words import DoubtfulWord, doubtful_words
from .statistics import CorpusMetric, ratio

NEGATIVES = 31  # images nearest to its own that a caption has to tell its own from
RANKS = (1, 5)


@dataclass(frozen=True)
class LabelFree:
    """Metrics of N captions, (N,) each by name, and their doubtful words."""

    columns: Columns
    doubtful: list[list[DoubtfulWord]]


def judge(
    encoder: Encoder,
    features_ND: Tensor,
    captions: Sequence[str],
    dependence_N: Sequence[float],
    classes: WordClasses,
) -> LabelFree:
    """Judge a caption of each of N images; features_ND: the images' under the held-out scorer.

    dependence_N: as `visual_dependence` gives it. A single image has no look-alike: no retrieval.
    """
    doubtful = doubtful_words(encoder, features_ND, captions, classes)
    pairs = zip(captions, doubtful, strict=True)
    counts = [(len(words), len(classes.places(caption))) for caption, words in pairs]
    columns: Columns = {}
    if len(captions) > 1:
        ranks = retrieval_ranks(features_ND, Chunked(encoder, captions).vectors)
        columns = {f"retrieval_{k}": (ranks <= k).float().cpu().numpy() for k in RANKS}
    columns |= {
        "repetition": np.array([Repetition().share(caption) for caption in captions]),
        "visual_dependence": np.array(dependence_N),
        "doubtful_rate": np.array([float(bool(words)) for words in doubtful]),
        "doubtful_words": CorpusMetric(np.array(counts, np.float64), ratio),
    }
    return LabelFree(columns, doubtful)


def retrieval_ranks(features_ND: Tensor, vectors_ND: Tensor) -> Tensor:
    """(N,) rank from 1 of each caption's image by cosine, among itself and its look-alikes."""
    similarity = (features_ND @ features_ND.T).fill_diagonal_(-torch.inf)
    nearest = similarity.topk(min(NEGATIVES, len(similarity) - 1), dim=1).indices
    cosines = vectors_ND @ features_ND.T
    return 1 + (cosines.gather(1, nearest) > cosines.diagonal()[:, None]).sum(1)


def visual_dependence(
    policy: Policy, captions: Sequence[str], images: Sequence[Image]
) -> list[float]:
    """Mean of log p(token | image) - log p(token | blank image), in nats, over content tokens.

    Under the policy before training; 0 for a caption without a content word.
    """
    own, blank = (policy.log_probs(captions, images, view) for view in ("image", "blank"))
    means = []
    for caption, a, b in zip(captions, own, blank, strict=True):
        tokens = content_tokens(policy.tokens(caption))
        means.append((a - b)[tokens].mean().item() if tokens else 0.0)
    return means


def diversity(captions: Sequence[str]) -> dict[str, float]:
    """Of a set: different word pairs as a share of all, different words, different captions."""
    words = [[core(word) for word in words_of(caption)] for caption in captions]
    pairs = [pair for caption in words for pair in pairwise(caption)]
    return {
        "distinct_2": len(set(pairs)) / max(1, len(pairs)),
        "vocabulary": len({word for caption in words for word in caption}),
        "unique_captions": len(set(captions)) / len(captions),
    }
