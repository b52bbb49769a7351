"""Label-free metrics of captions: retrieval among look-alikes, repetition, use of the image, doubt.

One number per caption each, beside its length and its held-out scores; diversity is of a whole set.
Without the run's held-out scorer there is neither retrieval nor doubt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from rewards import Encoder
from rewards import ReferencePolicy as Policy
from rewards.lib.chunks import Chunked, caption_cosines
from rewards.lib.images import Picked
from rewards.lib.lexicon import core, words_of
from rewards.lib.text import content_tokens
from rewards.lib.word_classes import WordClasses
from rewards.repetition import Repetition

from .before_after import Columns, score_key
from .doubtful_words import DoubtfulWord, doubtful_words
from .statistics import CorpusMetric, ratio

NEGATIVES = 31  # images nearest to its own that a caption has to tell its own from
RANKS = (1, 5)
SIDES = ("base", "trained")


@dataclass(frozen=True)
class Row:
    """Captions of N images, their cosines by scorer and what each owes to the image, in nats.

    cosines: by metric, as `columns_of` takes them.
    """

    captions: list[str] = field(default_factory=list)
    cosines: dict[str, list[float]] = field(default_factory=dict)
    dependence: list[float] = field(default_factory=list)


def extend_rows(
    rows: Mapping[str, Row],
    captions: Mapping[str, list[str]],
    ids: list[str],
    pictures: list[Image],
    scorers: Mapping[str, Encoder],
    reference: Policy,
) -> None:
    """Add captions of these images to their rows, scored; scorers: by metric."""
    for name, texts in captions.items():
        rows[name].captions.extend(texts)
        for metric, scorer in scorers.items():
            cosines = caption_cosines(scorer, ids, pictures, texts).tolist()
            rows[name].cosines.setdefault(metric, []).extend(cosines)
    # captions of an image one behind the other: the policy sees it once for all of them
    flat = [text for texts in zip(*captions.values(), strict=True) for text in texts]
    repeated = Picked(pictures, [k for k in range(len(ids)) for _ in captions])
    nats = visual_dependence(reference, flat, repeated)
    for k, name in enumerate(captions):
        rows[name].dependence.extend(nats[k :: len(captions)])


@dataclass(frozen=True)
class LabelFree:
    """Metrics of N captions, (N,) each by name, and their doubtful words, where they are judged."""

    columns: Columns
    doubtful: list[list[DoubtfulWord]] | None


def judge(
    encoder: Encoder | None, features_ND: Tensor, row: Row, classes: WordClasses
) -> LabelFree:
    """Judge a row of captions of N images; features_ND: the images' under the held-out scorer.

    encoder: that scorer, or None. A single image has no look-alike: no retrieval.
    """
    columns: Columns = {}
    if encoder is not None and len(row.captions) > 1:
        ranks = retrieval_ranks(features_ND, Chunked(encoder, row.captions).vectors)
        columns = {f"retrieval_{k}": (ranks <= k).float().cpu().numpy() for k in RANKS}
    columns |= {
        "repetition": np.array([Repetition().share(caption) for caption in row.captions]),
        "visual_dependence": np.array(row.dependence),
    }
    if encoder is None:
        return LabelFree(columns, None)
    doubtful = doubtful_words(encoder, features_ND, row.captions, classes)
    pairs = zip(row.captions, doubtful, strict=True)
    counts = [(len(words), len(classes.places(caption))) for caption, words in pairs]
    columns |= {
        "doubtful_rate": np.array([float(bool(words)) for words in doubtful]),
        "doubtful_words": CorpusMetric(np.array(counts, np.float64), ratio),
    }
    return LabelFree(columns, doubtful)


def caption_lines(
    ids: Sequence[str],
    rows: Mapping[str, Row],
    judged: Mapping[str, LabelFree],
    truth: Mapping[str, Mapping[str, Any]] | None,
) -> list[dict[str, Any]]:
    """The lines of captions.jsonl, but for rewards and references; truth: of drawn scenes, by id.

    rows, judged: of "base", "trained" and each control.
    """
    controls = [name for name in rows if name not in SIDES]
    lines = list[dict[str, Any]]()
    for k, image_id in enumerate(ids):
        line: dict[str, Any] = {"image_id": image_id}
        line |= {side: rows[side].captions[k] for side in SIDES}
        for metric in rows["base"].cosines:
            key = score_key(metric)
            line |= {f"{side}_{key}": rows[side].cosines[metric][k] for side in SIDES}
        if truth:
            line["truth"] = truth[image_id]["caption"]
        for side in SIDES:
            if (doubtful := judged[side].doubtful) is not None:
                line[f"{side}_doubtful"] = doubtful[k]
        if controls:
            line["controls"] = {name: _of_control(rows[name], judged[name], k) for name in controls}
        lines.append(line)
    return lines


def _of_control(row: Row, judged: LabelFree, k: int) -> dict[str, Any]:
    """What a line says of a control's caption of image k."""
    scores = {score_key(metric): values[k] for metric, values in row.cosines.items()}
    doubtful = {} if judged.doubtful is None else {"doubtful": judged.doubtful[k]}
    return {"caption": row.captions[k], **scores, **doubtful}


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
