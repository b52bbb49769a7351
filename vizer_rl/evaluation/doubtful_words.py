"""Doubtful words: by the held-out scorer another word of the same class fits the image better.

Label-free: each word that has alternatives (rewards/lib/word_classes.py) is swapped for each of
them, and the image is held against all these captions. How often the rule is right stands in
experiments/README.md; it can be no better than the scorer is on captions that differ in a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from rewards import Encoder
from rewards.lib.chunks import Chunked
from rewards.lib.word_classes import Place, WordClasses

CHUNK = 64  # captions whose swaps are encoded together
MIN_JUDGED = 0.5  # of the other's words: who says next to nothing has no doubtful words either
MARK = "*"
LEGEND = f"{MARK}word{MARK}: doubtful, by the held-out scorer another word fits the image better."


class DoubtfulWord(TypedDict):
    """Characters of the caption from start up to end, and what fits better."""

    start: int
    end: int
    word: str
    instead: str


def doubtful_words(
    encoder: Encoder, features_ND: Tensor, captions: Sequence[str], classes: WordClasses
) -> list[list[DoubtfulWord]]:
    """The doubtful words of each of N captions; features_ND: unit vectors of their images."""
    doubtful = list[list[DoubtfulWord]]()
    for start in range(0, len(captions), CHUNK):
        chunk = captions[start : start + CHUNK]
        places_N = [classes.places(caption) for caption in chunk]
        margins = swap_margins(encoder, features_ND[start : start + CHUNK], chunk, places_N)
        for row, margins_A in zip(places_N, margins, strict=True):
            pairs = zip(row, margins_A, strict=True)
            doubtful.append([_best(place, m) for place, m in pairs if m.max() > 0])
    return doubtful


def doubtful_counts(
    encoder: Encoder, features_ND: Tensor, captions: Sequence[str], classes: WordClasses
) -> tuple[Tensor, Tensor]:
    """(N,) doubtful words of each of N captions, and (N,) all that have an alternative."""
    doubtful = doubtful_words(encoder, features_ND, captions, classes)
    judged = [len(classes.places(caption)) for caption in captions]
    return torch.tensor([len(words) for words in doubtful]), torch.tensor(judged)


def _best(place: Place, margins_A: Tensor) -> DoubtfulWord:
    instead = place.alternatives[int(margins_A.argmax())]
    return {"start": place.start, "end": place.end, "word": place.word, "instead": instead}


def swap_margins(
    encoder: Encoder,
    features_ND: Tensor,
    captions: Sequence[str],
    places_N: Sequence[Sequence[Place]],
) -> list[list[Tensor]]:
    """Per caption and place (A,): the cosine with each alternative minus the caption's own."""
    swapped = [text for row in places_N for place in row for text in place.captions]
    own = [" ".join(caption.split()) for caption in captions]  # as the swapped ones are spaced
    vectors, margins, begin = Chunked(encoder, [*own, *swapped]).vectors, [], len(own)
    for n, row in enumerate(places_N):
        margins.append(list[Tensor]())
        for place in row:
            end = begin + len(place.captions)
            margins[n].append((vectors[begin:end] - vectors[n]) @ features_ND[n])
            begin = end
    return margins


def marked(caption: str, doubtful: Sequence[Mapping[str, object]]) -> str:
    """A caption with a mark on both sides of its doubtful words."""
    for word in sorted(doubtful, key=lambda word: -int(str(word["start"]))):
        start, end = int(str(word["start"])), int(str(word["end"]))
        caption = f"{caption[:start]}{MARK}{caption[start:end]}{MARK}{caption[end:]}"
    return caption
