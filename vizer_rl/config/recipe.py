"""Recipes: one word in a run file that says how sure a caption has to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .schema import Recipe

DIAL: dict[str, float] = {"faithful": 0.9, "balanced": 0.8, "descriptive": 0.65}
WEIGHT = 2.0  # of certainty: .7 of the advantages beside the default rewards on scenes
TAGGER = {"scenes": "lexicon", "full": "builtin"}  # by profile: what finds the words of a class


def add_recipe(settings: dict[str, Any], profile: str) -> None:
    """Put what the recipe asks for under `rewards`, in place, where the file does not set it."""
    recipe, rewards = settings.get("recipe"), settings.get("rewards")
    if isinstance(recipe, str) and recipe in DIAL and isinstance(rewards, dict):
        parameters = {"weight": WEIGHT, "at_least": DIAL[recipe], "tagger": TAGGER[profile]}
        own = rewards.get("certainty", {})
        rewards["certainty"] = {**parameters, **own} if isinstance(own, dict) else own


def has_dial(rewards: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a reward says how sure a word must be: then less is told, and a cosine falls."""
    return bool(rewards.get("certainty", {}).get("weight"))


def asks_for(recipe: Recipe | None, rewards: dict[str, dict[str, Any]]) -> str:
    """The sentence on what the dial asks for; "" where no reward is the dial."""
    if not has_dial(rewards):
        return ""
    settings = rewards["certainty"]
    p = float(settings.get("at_least", DIAL["balanced"]))
    if not 0.5 < p < 1:  # the reward refuses it
        return ""
    name = f"recipe {recipe}" if recipe else "rewards.certainty"
    return (
        f"{name}: a word is to be said where the base is right about it with a probability of "
        f"{p:g} or more; a wrong word costs {p / (1 - p):.3g} times what a right one brings"
    )
