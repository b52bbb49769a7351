"""Openings: a text, such as a trigger word, that each caption is to begin with.

A reward declares one as its `opening`. It is put in front of completions until the policy says it
by itself (docs/words.md); all other rewards, and every CLIP, read the captions without it, for it
says nothing about the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewards.lib.lookup import find, make
from rewards.lib.own_words import EDGES


def begins(caption: str, opening: str) -> bool:
    """Whether the caption begins with the opening as it is written, in whole words."""
    if not opening or not caption.startswith(opening):
        return False
    follows = caption[len(opening) :][:1]
    return not (opening[-1].isalnum() and (follows.isalnum() or follows == "_"))


def without_opening(caption: str, opening: str) -> str:
    """What stands behind the opening; the caption as it is where it does not begin with it."""
    return caption[len(opening) :].lstrip(EDGES) if begins(caption, opening) else caption


def declared_opening(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """The opening that a run's rewards with a weight declare, "" for none.

    sections: `rewards` of a run file. ValueError where a reward cannot be built, or two disagree.
    """
    openings: dict[str, str] = {}  # to the reward that declares it
    for key, section in sections.items():
        if section.get("weight", 1.0) > 0 and hasattr(find(key), "opening"):
            reward: Any = make(key, {k: v for k, v in section.items() if k != "weight"})
            openings |= {reward.opening: key} if reward.opening else {}
    return single_opening(openings)


def single_opening(openings: Mapping[str, str]) -> str:
    """The opening of a run, "" for none; ValueError where there are two.

    openings: each with the name of a reward that declares it.
    """
    if len(openings) > 1:
        texts = " and ".join(f"{text!r} ({name})" for text, name in openings.items())
        raise ValueError(f"captions cannot begin with {texts}: leave one of them out")
    return next(iter(openings), "")
