"""Pairs of captions of an audit: each attack on the caption of each image that is attacked."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rewards.lib.lexicon import Lexicon

from .attacks import Attack, Subject, pairs_of
from .judges import Judges
from .sample import CaptionSample

NEAR_DUPLICATE = 0.95  # image cosine above which a neighbour is the same picture
NEIGHBOURS = 128  # images of the bank among which the nearest is looked for


@dataclass(frozen=True)
class AttackPair:
    """One pair of an attack: on image n, `better` became `worse`."""

    attack: Attack
    n: int
    better: str
    worse: str


def attack_pairs(
    judges: Judges, sample: CaptionSample
) -> tuple[list[AttackPair], dict[str, dict[str, int]]]:
    """Every pair that the policy could say; by attack, how many were left out, and why."""
    bank = judges.parts.bank.sample
    lexicon = Lexicon.learn([*bank.captions, *(c for group in sample.captions for c in group)])
    neighbours = neighbour_captions(judges, sample)
    context = min(judges.parts.scoring.encoders(None).context_length, 512)
    pairs: list[AttackPair] = []
    omitted = {a.name: {"unchanged": 0, "too_long": 0, "contested": 0} for a in judges.attacks}
    for n in sample.attacked:
        image_id = sample.image_ids[n]
        others = [c for i, c in zip(bank.image_ids, bank.captions, strict=True) if i != image_id]
        captions = (*sample.captions[n], sample.greedy_captions[n])
        unrelated = others[(7 * n + 3) % len(others)]
        subject = Subject(sample.original(n), captions, neighbours[n], unrelated, context)
        for attack in judges.attacks:
            changed, unchanged = pairs_of(attack, subject, lexicon, image_id)
            omitted[attack.name]["unchanged"] += unchanged
            for better, worse in changed:
                if judges.fits(better) and judges.fits(worse):
                    pairs.append(AttackPair(attack, n, better, worse))
                else:
                    omitted[attack.name]["too_long"] += 1
    return pairs, omitted


def neighbour_captions(judges: Judges, sample: CaptionSample) -> list[str | None]:
    """(N,) the bank's caption of the nearest image that is none of the image's own, or None.

    Nearest in the reference policy's vision features, for it is what the policy would mistake.
    """
    bank = judges.parts.bank.sample
    bank_captions = dict(zip(bank.image_ids, bank.captions, strict=True))
    ids = list(dict.fromkeys([*sample.image_ids, *bank.image_ids[:NEIGHBOURS]]))
    features = judges.parts.reference.image_features(ids, judges.images(ids))
    features = torch.nn.functional.normalize(features - features.mean(0), dim=-1)
    neighbours: list[str | None] = []
    for n in range(len(sample.image_ids)):
        cosines = features @ features[n]
        order = cosines.argsort(descending=True).tolist()
        nearest = (bank_captions[ids[row]] for row in order if cosines[row] < NEAR_DUPLICATE)
        own = {*sample.captions[n], sample.greedy_captions[n], ""}
        neighbours.append(next((caption for caption in nearest if caption not in own), None))
    return neighbours
