"""Captions sampled from the reference policy on a run's images, which an audit attacks and scores.

Attacked is of each image the sampled caption that the held-out scorer likes best, if it ends, says
something, and fits its own image better than most of the others: a base captioner's average caption
may be vague or wrong, and then no attack makes it worse.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewards.lib.chunks import Chunked
from rewards.lib.lexicon import vocabulary

from ..evaluation.statistics import shuffle_apart
from ..policy import captioner
from .judges import UNCHANGED, Judges, Perturbation

GROUP_SIZE = 8  # captions of each image
MIN_WORDS = 2  # a shorter caption has nothing to be made worse


@dataclass(frozen=True)
class CaptionSample:
    """N images, GROUP_SIZE = G captions of each from the reference policy, and the greedy one.

    image_ids, greedy_captions: (N,); captions, completion_ids: (N, G); heldout_scores (N, G) and
    greedy_heldout_scores (N,): cosines under the held-out scorer; original_idx (N,): index of the
    caption to attack, -1 where none is fit for it.
    """

    image_ids: list[str]
    captions: list[list[str]]
    completion_ids: list[list[list[int]]]
    greedy_captions: list[str]
    heldout_scores: np.ndarray
    greedy_heldout_scores: np.ndarray
    original_idx: list[int]

    @property
    def attacked(self) -> list[int]:
        """Indices of the images that have a caption to attack."""
        return [n for n, g in enumerate(self.original_idx) if g >= 0]

    def original(self, n: int) -> str:
        """The caption of image n that is attacked."""
        return self.captions[n][self.original_idx[n]]


def sample_captions(judges: Judges, count: int) -> CaptionSample:
    """Caption up to `count` images of the bank with the reference policy."""
    return caption_images(judges, chosen_images(judges.parts.bank.sample.image_ids, count))


def chosen_images(ids: Sequence[str], count: int) -> list[str]:
    """Up to `count` of the images, always the same of the same, sorted."""
    return sorted(random.Random(1).sample(list(ids), min(count, len(ids))))


def caption_images(judges: Judges, ids: list[str]) -> CaptionSample:
    """Caption these images with the reference policy: GROUP_SIZE sampled, one greedy."""
    parts = judges.parts
    repeated_ids = [i for i in ids for _ in range(GROUP_SIZE)]
    sampled = _captions(judges, repeated_ids, parts.temperature)
    greedy = _captions(judges, ids, 0.0)
    flat, greedy_captions = [c.text for c in sampled], [c.text for c in greedy]
    heldout = judges.heldout_scores(repeated_ids, flat).reshape(len(ids), GROUP_SIZE)
    starts = range(0, len(flat), GROUP_SIZE)
    captions = [flat[i : i + GROUP_SIZE] for i in starts]
    completion_ids = [[c.ids for c in sampled[i : i + GROUP_SIZE]] for i in starts]
    original_idx = _originals(judges, ids, captions, completion_ids, heldout)
    greedy_heldout = judges.heldout_scores(ids, greedy_captions)
    return CaptionSample(
        ids, captions, completion_ids, greedy_captions, heldout, greedy_heldout, original_idx
    )


def _captions(judges: Judges, ids: list[str], temperature: float) -> list[captioner.Caption]:
    """A caption of each image from the reference policy, each image encoded once."""
    parts = judges.parts
    return captioner.caption(
        parts.reference.model,
        parts.reference.processor,
        judges.images(ids),
        parts.prompt,
        max_new_tokens=parts.max_completion_length,
        temperature=temperature,
        vision_cache=parts.vision_cache,
    )


def _originals(
    judges: Judges,
    ids: list[str],
    captions: list[list[str]],
    completion_ids: list[list[list[int]]],
    heldout_scores: np.ndarray,
) -> list[int]:
    """(N,) index of the caption to attack: ended, says something, liked best, not generic."""
    eos_ids, chosen = set(judges.eos_ids), []
    for n, group in enumerate(captions):
        fit = [g for g, ids_ in enumerate(completion_ids[n]) if ids_ and ids_[-1] in eos_ids]
        fit = [g for g in fit if len(vocabulary([group[g]])) >= MIN_WORDS]
        chosen.append(max(fit, key=lambda g: heldout_scores[n, g]) if fit else -1)
    rows = [n for n, g in enumerate(chosen) if g >= 0]
    encoder = judges.parts.heldout
    images = encoder.image_features(ids, judges.images(ids))
    texts = Chunked(encoder, [captions[n][chosen[n]] for n in rows] or [""]).vectors
    for row, n in enumerate(rows):
        cosines = images @ texts[row]
        if cosines[n] < cosines.median():
            chosen[n] = -1  # fits other images as well or better: generic
    return chosen


def sample_scores(
    judges: Judges, sample: CaptionSample, perturbation: Perturbation = UNCHANGED
) -> np.ndarray:
    """(K, N, G) scores of the sampled captions under every reward."""
    ids = [i for i in sample.image_ids for _ in range(GROUP_SIZE)]
    captions = [c for group in sample.captions for c in group]
    completion_ids = [c for group in sample.completion_ids for c in group]
    scores = judges.score(ids, captions, completion_ids, GROUP_SIZE, perturbation)
    return scores.reshape(len(judges.names), len(sample.image_ids), GROUP_SIZE)


def other_images(count: int, turn: int) -> list[int]:
    """For each of `count` images the index of another one; another turn, another choice."""
    return shuffle_apart(count, 5 * turn + 1)
