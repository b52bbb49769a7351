"""What an audit looks at: captions of the frozen policy, attacks on them, and who scores them.

Which captions are attacked: of each image the one of its sampled captions that the held-out scorer
likes best, if it ends, says something, and fits its own image better than most of the others. A
base captioner's average caption may be vague or wrong, and then nothing is made worse by an attack.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from rewards import Bank, Encoder

from .. import policy
from ..config import Run
from ..data import ImageFolder
from ..frozen import Frozen
from ..metrics.ranks import shuffle_apart
from ..scoring import Scoring
from .attacks import ATTACKS, Attack, Subject, pairs_of
from .lexis import Lexis, vocabulary
from .pictures import Pictures

GROUP = 8  # captions of each image
SOME_WORDS = 2  # an original that says less has nothing to be made worse
NEAR_DUPLICATE = 0.95  # image cosine above which a neighbour is the same picture
NEIGHBOURS = 128  # images of the bank among which the nearest is looked for
CACHED = 32  # decoded images


@dataclass(frozen=True)
class Parts:
    """The parts of a run, loaded: the policy has no adapter yet, the rewards are prepared.

    args: TRL's config; images: the training images; heldout: the scorer that no reward uses.
    """

    run: Run
    args: Any
    images: ImageFolder
    frozen: Frozen
    heldout: Encoder
    scoring: Scoring
    bank: Bank


@dataclass(frozen=True)
class Said:
    """What the frozen policy said: N images, GROUP sampled captions of each and the greedy one.

    ids_N; captions_NG and their tokens; greedy_N; heldout_NG and heldout_greedy_N: cosines under
    the held-out scorer; original_N: which caption is attacked, -1 where none is fit for it.
    """

    ids: list[str]
    captions: list[list[str]]
    tokens: list[list[list[int]]]
    greedy: list[str]
    heldout: np.ndarray
    heldout_greedy: np.ndarray
    original: list[int]

    @property
    def attacked(self) -> list[int]:
        """The images whose original is fit to be attacked."""
        return [n for n, g in enumerate(self.original) if g >= 0]

    def original_of(self, n: int) -> str:
        return self.captions[n][self.original[n]]


@dataclass(frozen=True)
class Row:
    """One pair of an attack: on image n, `better` became `worse`."""

    attack: Attack
    n: int
    better: str
    worse: str


class Desk:
    """Scores captions of the run's images with its rewards, the held-out scorer and the policy."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.load = lru_cache(CACHED)(parts.images.load)
        self.weights = [reward.weight for reward in parts.scoring.rewards]
        self.names = [reward.name for reward in parts.scoring.rewards]
        self.milliseconds = dict.fromkeys(self.names, 0.0)
        self.ends = policy.eos_ids(parts.frozen.model, parts.frozen.processor)

    @property
    def normalised(self) -> bool:
        """Whether training scales each reward in its group before it weighs them."""
        return bool(self.parts.args.multi_objective_aggregation == "normalize_then_sum")

    def tokens(self, caption: str) -> list[int]:
        """The caption as a completion, EOS at its end."""
        ids = self.parts.frozen.processor.tokenizer(caption, add_special_tokens=False)["input_ids"]
        return [*ids, self.ends[0]]

    def fits(self, caption: str) -> bool:
        """Whether the policy may speak so long."""
        return len(self.tokens(caption)) <= int(self.parts.args.max_completion_length)

    def score(
        self,
        ids: Sequence[str],
        captions: Sequence[str],
        tokens: Sequence[list[int]],
        size: int,
        view: tuple[str, Any] = ("", None),
    ) -> np.ndarray:
        """(K, rows) scores, NaN where a reward cannot judge; groups of `size` rows.

        view: what is added to the ids, and how each image is then seen.
        """
        named = [i + view[0] for i in ids]
        pictures = Pictures(self.load, ids, view[1])
        batch = self.parts.scoring.batch(named, pictures, captions, tokens)
        groups = [range(i, i + size) for i in range(0, len(captions), size)]
        scores = self.parts.scoring.scores(replace(batch, groups=groups))
        seconds = self.parts.scoring.seconds
        self.milliseconds = {n: 1000 * seconds[n] / len(captions) for n in self.names}
        rows = [[np.nan if v is None else v for v in scores[name]] for name in self.names]
        return np.array(rows, np.float64)

    def heldout(self, ids: Sequence[str], captions: Sequence[str]) -> np.ndarray:
        """(rows,) cosines under the held-out scorer."""
        encoder = self.parts.heldout
        images = encoder.image_features(ids, Pictures(self.load, ids))
        return (images * encoder.text_features(captions)).sum(-1).cpu().double().numpy()

    def log_probs(self, ids: Sequence[str], captions: Sequence[str]) -> np.ndarray:
        """(rows,) log-probability of each caption's tokens under the frozen policy, in nats."""
        pairs = list(dict.fromkeys(zip(ids, captions, strict=True)))  # each read once
        pictures = Pictures(self.load, [image_id for image_id, _ in pairs])
        told = self.parts.frozen.log_probs([caption for _, caption in pairs], pictures)
        known = {pair: float(t.sum()) for pair, t in zip(pairs, told, strict=True)}
        return np.array([known[pair] for pair in zip(ids, captions, strict=True)])


def sample(desk: Desk, count: int) -> Said:
    """Let the frozen policy caption `count` images, among those whose captions are in the bank."""
    parts = desk.parts
    ids = list(parts.bank.sample.image_ids)
    ids = sorted(random.Random(1).sample(ids, min(count, len(ids))))
    rows = [i for i in ids for _ in range(GROUP)]
    asked = parts.frozen.model, parts.frozen.processor
    prompt, length = parts.run.data.prompt, int(parts.args.max_completion_length)
    said = policy.caption(
        *asked,
        Pictures(desk.load, rows),
        prompt,
        max_new_tokens=length,
        temperature=float(parts.args.temperature),
    )
    greedy = [
        c.text
        for c in policy.caption(*asked, Pictures(desk.load, ids), prompt, max_new_tokens=length)
    ]
    texts = [c.text for c in said]
    heldout = desk.heldout(rows, texts).reshape(len(ids), GROUP)
    starts = range(0, len(rows), GROUP)
    captions = [texts[i : i + GROUP] for i in starts]
    tokens = [[c.ids for c in said[i : i + GROUP]] for i in starts]
    original = _originals(desk, ids, captions, tokens, heldout)
    at = desk.heldout(ids, greedy)
    return Said(ids, captions, tokens, greedy, heldout, at, original)


def _originals(
    desk: Desk,
    ids: list[str],
    captions: list[list[str]],
    tokens: list[list[list[int]]],
    heldout: np.ndarray,
) -> list[int]:
    """Of each image the caption to attack: ended, says something, liked best, not generic."""
    ends, chosen = set(desk.ends), []
    for n, some in enumerate(captions):
        fit = [g for g, ids_ in enumerate(tokens[n]) if ids_ and ids_[-1] in ends]
        fit = [g for g in fit if len(vocabulary([some[g]])) >= SOME_WORDS]
        chosen.append(max(fit, key=lambda g: heldout[n, g]) if fit else -1)
    rows = [n for n, g in enumerate(chosen) if g >= 0]
    encoder = desk.parts.heldout
    images = encoder.image_features(ids, Pictures(desk.load, ids))
    told = encoder.text_features([captions[n][chosen[n]] for n in rows] or [""])
    for row, n in enumerate(rows):
        everywhere = images @ told[row]
        if everywhere[n] < everywhere.median():
            chosen[n] = -1  # fits other images as well or better: generic
    return chosen


def attack_rows(desk: Desk, said: Said) -> tuple[list[Row], dict[str, dict[str, int]]]:
    """Every pair of every attack that the policy could say; and how many were left out, and why."""
    bank = desk.parts.bank.sample
    everything = [*bank.captions, *(c for some in said.captions for c in some)]
    lexis, near = Lexis.learn(everything), neighbours(desk, said)
    context = min(desk.parts.scoring.encoders(None).context_length, 512)
    rows: list[Row] = []
    left = {a.name: {"unchanged": 0, "too_long": 0, "contested": 0} for a in ATTACKS}
    for n in said.attacked:
        strangers = [
            c for i, c in zip(bank.image_ids, bank.captions, strict=True) if i != said.ids[n]
        ]
        stranger = strangers[(7 * n + 3) % len(strangers)]
        told = (*said.captions[n], said.greedy[n])
        subject = Subject(said.original_of(n), told, near[n], stranger, context)
        for attack in ATTACKS:
            pairs, unchanged = pairs_of(attack, subject, lexis, said.ids[n])
            left[attack.name]["unchanged"] += unchanged
            for better, worse in pairs:
                if desk.fits(better) and desk.fits(worse):
                    rows.append(Row(attack, n, better, worse))
                else:
                    left[attack.name]["too_long"] += 1
    return rows, left


def neighbours(desk: Desk, said: Said) -> list[str | None]:
    """For each image the bank's caption of the nearest image, of which other things are said.

    Nearest by the frozen policy's own view of images, for it is what the policy would mistake.
    """
    bank = desk.parts.bank.sample
    captions = dict(zip(bank.image_ids, bank.captions, strict=True))
    ids = list(dict.fromkeys([*said.ids, *bank.image_ids[:NEIGHBOURS]]))
    every = desk.parts.frozen.image_features(ids, Pictures(desk.load, ids))
    every = torch.nn.functional.normalize(every - every.mean(0), dim=-1)
    out: list[str | None] = []
    for n in range(len(said.ids)):
        alike = every @ every[n]
        order = alike.argsort(descending=True).tolist()
        close = (captions[ids[row]] for row in order if alike[row] < NEAR_DUPLICATE)
        told = {*said.captions[n], said.greedy[n], ""}
        out.append(next((caption for caption in close if caption not in told), None))
    return out


def others(count: int, turn: int) -> list[int]:
    """For each image the number of another one."""
    return shuffle_apart(count, 5 * turn + 1)
