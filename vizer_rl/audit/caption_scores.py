"""Scores of captions of a sample's images under the rewards, and their sum as training forms it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..scoring.aggregation import group_scores
from .judges import Judges
from .sample import GROUP_SIZE, CaptionSample

SUM = "sum"
Metrics = dict[str, Any]


def weighted_sums(judges: Judges, scores_KNG: np.ndarray) -> np.ndarray:
    """(N, G) what training ranks the captions of each group by, in float64."""
    rewards_NK = torch.from_numpy(scores_KNG).double().flatten(1).T.contiguous()
    weights_K = torch.tensor(judges.weights, dtype=torch.float64)
    gates_K, group = judges.parts.scoring.gates_K, scores_KNG.shape[-1]
    total_N = group_scores(rewards_NK, weights_K, gates_K, group, judges.normalised)
    return total_N.view(scores_KNG.shape[1:]).numpy()


def group_sums(
    judges: Judges,
    scores_KNG: np.ndarray,
    sample: CaptionSample,
    images: Sequence[int],
    better_KP: np.ndarray,
    worse_KP: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(P,) weighted sums of both captions of each pair, in the group of the pair's image."""
    originals = np.array([sample.original_idx[n] for n in images], int)
    groups = scores_KNG[:, list(images)].copy()
    groups[:, np.arange(len(images)), originals] = better_KP
    groups = np.concatenate([groups, worse_KP[..., None]], -1)
    total = weighted_sums(judges, groups)
    return total[np.arange(len(images)), originals], total[:, -1]


def score_captions(
    judges: Judges,
    sample: CaptionSample,
    captions: Sequence[tuple[int, str]],
    shown: Sequence[int],
) -> np.ndarray:
    """(K, P) scores of captions of images, each with the image shown[n] in place of its own, n.

    A reward that needs whole groups gets them.
    """
    whole = any(r.declared("groups", False) for r in judges.parts.scoring.rewards)
    size = GROUP_SIZE if whole else 1
    ids, texts, completion_ids = [], [], []
    for n, caption in captions:
        rest = [g for g in range(GROUP_SIZE) if g != max(0, sample.original_idx[n])][: size - 1]
        ids += [sample.image_ids[shown[n]]] * size
        texts += [caption, *(sample.captions[n][g] for g in rest)]
        completion_ids += [judges.tokenize(caption), *(sample.completion_ids[n][g] for g in rest)]
    return judges.score(ids, texts, completion_ids, size)[:, ::size]
