"""Favourite words of a reward: those that it prefers whatever the image shows.

A word is one where it beats the true word that it was put in the place of, in image after image.
Training will say it of everything if it wins where it is added, too: the proof, on other pairs than
those that found the word.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from rewards.lib.lexicon import OPENERS, core, words_of

from .attack_pairs import AttackPair
from .picks import picks
from .thresholds import MIN_IMAGES, prefers_wrong

REPLACED = ("noun swapped", "attribute swapped")
ADDED = ("object added", "attribute added")


def favourites(pairs: Sequence[AttackPair], sign_P: np.ndarray) -> dict[str, Any]:
    """{"words": picks by word that wins where it replaces another, "added": where these are added}.

    Picks are of the originals, so that wrong ones are for the word; `added` is of all of the words,
    None where they were added to fewer than MIN_IMAGES images.
    """
    rows = defaultdict[str, list[int]](list)
    for p, pair in enumerate(pairs):
        if pair.attack.name in REPLACED:
            rows[new_word(pair)].append(p)
    words = {}
    for word, own in rows.items():
        images = [pairs[p].n for p in own]
        chosen = picks(sign_P[own], images)
        if len(set(images)) >= MIN_IMAGES and prefers_wrong(chosen):
            words[word] = chosen
    added = [
        p for p, pair in enumerate(pairs) if pair.attack.name in ADDED and new_word(pair) in words
    ]
    images = [pairs[p].n for p in added]
    enough = len(set(images)) >= MIN_IMAGES
    return {"words": words, "added": picks(sign_P[added], images) if enough else None}


def new_word(pair: AttackPair) -> str:
    """The word of an attacked caption that the original has not; an article is none."""
    better, worse = (Counter(map(core, words_of(c))) for c in (pair.better, pair.worse))
    return next((word for word in worse - better if word not in OPENERS), "")
