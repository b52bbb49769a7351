"""Attacks on captions that begin with a trigger word, where a reward of the run wants one."""

from __future__ import annotations

import random

from rewards.lib.lexicon import Lexicon

from .attacks import Attack, AttackFunction, Pair, Subject
from .compositions import ALL_ATTACKS


def attacks_for(opening: str) -> tuple[Attack, ...]:
    """The attacks on a run's captions; opening: what they are to begin with, "" for nothing."""
    return (*ALL_ATTACKS, *_with_opening(opening)) if opening else ALL_ATTACKS


def _with_opening(opening: str) -> tuple[Attack, ...]:
    """Each attacks the caption behind the opening; {o}: opening, {c}: caption, {w}: a wrong one."""

    def becomes(form: str) -> AttackFunction:
        def make(subject: Subject, lexicon: Lexicon, rng: random.Random) -> list[Pair]:
            words = {"o": opening, "c": subject.caption, "w": subject.unrelated}
            return [("{o}, {c}".format(**words), form.format(**words))]

        return make

    return (
        Attack("trigger dropped", "the caption without it", "contains", becomes("{c}")),
        Attack("trigger last", "behind the caption", "contains", becomes("{c}, {o}")),
        Attack("trigger twice", "said again", "contains", becomes("{o}, {o}, {c}")),
        Attack("trigger alone", "nothing behind it", "length", becomes("{o}")),
        Attack("trigger, wrong caption", "untrue", "self_retrieval", becomes("{o}, {w}")),
    )
