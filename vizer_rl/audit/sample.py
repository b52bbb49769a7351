"""What an audit looks at: captions of the frozen policy, attacks on them, and who scores them.

Which captions are attacked: of each image the one of its sampled captions that the held-out scorer
likes best, if it ends, says something, and fits its own image better than most of the others. A
base captioner's average caption may be vague or wrong, and then nothing is made worse by an attack.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch

from ..evaluation.statistics import shuffle_apart
from ..policy import captioner
from .attacks import ATTACKS, Attack, Subject, pairs_of
from .judges import Judges
from .lexicon import Lexicon, vocabulary
from .pictures import Pictures

GROUP = 8  # captions of each image
SOME_WORDS = 2  # an original that says less has nothing to be made worse
NEAR_DUPLICATE = 0.95  # image cosine above which a neighbour is the same picture
NEIGHBOURS = 128  # images of the bank among which the nearest is looked for


@dataclass(frozen=True)
class CaptionSample:
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


def sample(judges: Judges, count: int) -> CaptionSample:
    """Let the frozen policy caption `count` images, among those whose captions are in the bank."""
    parts = judges.parts
    ids = list(parts.bank.sample.image_ids)
    ids = sorted(random.Random(1).sample(ids, min(count, len(ids))))
    rows = [i for i in ids for _ in range(GROUP)]
    asked = parts.reference.model, parts.reference.processor
    prompt, length = parts.run.data.prompt, int(parts.args.max_completion_length)
    said = captioner.caption(
        *asked,
        Pictures(judges.load, rows),
        prompt,
        max_new_tokens=length,
        temperature=float(parts.args.temperature),
    )
    greedy = [
        c.text
        for c in captioner.caption(
            *asked, Pictures(judges.load, ids), prompt, max_new_tokens=length
        )
    ]
    texts = [c.text for c in said]
    heldout = judges.heldout(rows, texts).reshape(len(ids), GROUP)
    starts = range(0, len(rows), GROUP)
    captions = [texts[i : i + GROUP] for i in starts]
    tokens = [[c.ids for c in said[i : i + GROUP]] for i in starts]
    original = _originals(judges, ids, captions, tokens, heldout)
    at = judges.heldout(ids, greedy)
    return CaptionSample(ids, captions, tokens, greedy, heldout, at, original)


def _originals(
    judges: Judges,
    ids: list[str],
    captions: list[list[str]],
    tokens: list[list[list[int]]],
    heldout: np.ndarray,
) -> list[int]:
    """Of each image the caption to attack: ended, says something, liked best, not generic."""
    ends, chosen = set(judges.ends), []
    for n, some in enumerate(captions):
        fit = [g for g, ids_ in enumerate(tokens[n]) if ids_ and ids_[-1] in ends]
        fit = [g for g in fit if len(vocabulary([some[g]])) >= SOME_WORDS]
        chosen.append(max(fit, key=lambda g: heldout[n, g]) if fit else -1)
    rows = [n for n, g in enumerate(chosen) if g >= 0]
    encoder = judges.parts.heldout
    images = encoder.image_features(ids, Pictures(judges.load, ids))
    told = encoder.text_features([captions[n][chosen[n]] for n in rows] or [""])
    for row, n in enumerate(rows):
        everywhere = images @ told[row]
        if everywhere[n] < everywhere.median():
            chosen[n] = -1  # fits other images as well or better: generic
    return chosen


def attack_rows(judges: Judges, said: CaptionSample) -> tuple[list[Row], dict[str, dict[str, int]]]:
    """Every pair of every attack that the policy could say; and how many were left out, and why."""
    bank = judges.parts.bank.sample
    everything = [*bank.captions, *(c for some in said.captions for c in some)]
    lexis, near = Lexicon.learn(everything), neighbours(judges, said)
    context = min(judges.parts.scoring.encoders(None).context_length, 512)
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
                if judges.fits(better) and judges.fits(worse):
                    rows.append(Row(attack, n, better, worse))
                else:
                    left[attack.name]["too_long"] += 1
    return rows, left


def neighbours(judges: Judges, said: CaptionSample) -> list[str | None]:
    """For each image the bank's caption of the nearest image, of which other things are said.

    Nearest by the frozen policy's own view of images, for it is what the policy would mistake.
    """
    bank = judges.parts.bank.sample
    captions = dict(zip(bank.image_ids, bank.captions, strict=True))
    ids = list(dict.fromkeys([*said.ids, *bank.image_ids[:NEIGHBOURS]]))
    every = judges.parts.reference.image_features(ids, Pictures(judges.load, ids))
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
