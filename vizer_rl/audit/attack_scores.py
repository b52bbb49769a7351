"""Win rates under attack: how often the original caption wins, and which scorers can be trusted.

Every metric is a mean over images with its bootstrap interval, or None where there was nothing to
measure. "sum" is the sum as training forms it: the caption is put beside the sampled ones of its
image, each reward normalised in that group where the run does so. What a gate refuses loses there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rewards.lib.lexicon import Lexicon

from ..evaluation.statistics import estimate, number, per_image, wins
from ..scoring.aggregation import group_scores
from .attacks import ATTACKS, Attack, Subject, pairs_of
from .judges import Judges
from .sample import GROUP_SIZE, CaptionSample, other_images

SUM = "sum"
REACH = 10.0  # nats: a KL budget of that much per caption is an alarm (REWARDS, combining)
NEAR_DUPLICATE = 0.95  # image cosine above which a neighbour is the same picture
NEIGHBOURS = 128  # images of the bank among which the nearest is looked for
KINDS = {"noun": "noun swapped", "attribute": "attribute swapped"}
Metrics = dict[str, Any]


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
    omitted = {a.name: {"unchanged": 0, "too_long": 0, "contested": 0} for a in ATTACKS}
    for n in sample.attacked:
        image_id = sample.image_ids[n]
        others = [c for i, c in zip(bank.image_ids, bank.captions, strict=True) if i != image_id]
        captions = (*sample.captions[n], sample.greedy_captions[n])
        unrelated = others[(7 * n + 3) % len(others)]
        subject = Subject(sample.original(n), captions, neighbours[n], unrelated, context)
        for attack in ATTACKS:
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


def weighted_sums(judges: Judges, scores_KNG: np.ndarray) -> np.ndarray:
    """(N, G) what training ranks the captions of each group by, in float64."""
    rewards_NK = torch.from_numpy(scores_KNG).double().flatten(1).T.contiguous()
    weights_K = torch.tensor(judges.weights, dtype=torch.float64)
    gates_K, group = judges.parts.scoring.gates_K, scores_KNG.shape[-1]
    total_N = group_scores(rewards_NK, weights_K, gates_K, group, judges.normalised)
    return total_N.view(scores_KNG.shape[1:]).numpy()


def group_sums(
    judges: Judges,
    scores_KNG: np.ndarray,
    sample: CaptionSample,
    images: Sequence[int],
    better_KP: np.ndarray,
    worse_KP: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(P,) weighted sums of both captions of each pair, in the group of the pair's image."""
    originals = np.array([sample.original_idx[n] for n in images], int)
    groups = scores_KNG[:, list(images)].copy()
    groups[:, np.arange(len(images)), originals] = better_KP
    groups = np.concatenate([groups, worse_KP[..., None]], -1)
    total = weighted_sums(judges, groups)
    return total[np.arange(len(images)), originals], total[:, -1]


def score_captions(
    judges: Judges, sample: CaptionSample, captions: Sequence[tuple[int, str]]
) -> np.ndarray:
    """(K, P) scores of (image, caption) pairs; a reward that needs whole groups gets them."""
    whole = any(r.declared("groups", False) for r in judges.parts.scoring.rewards)
    size = GROUP_SIZE if whole else 1
    ids, texts, completion_ids = [], [], []
    for n, caption in captions:
        rest = [g for g in range(GROUP_SIZE) if g != max(0, sample.original_idx[n])][: size - 1]
        ids += [sample.image_ids[n]] * size
        texts += [caption, *(sample.captions[n][g] for g in rest)]
        completion_ids += [judges.tokenize(caption), *(sample.completion_ids[n][g] for g in rest)]
    return judges.score(ids, texts, completion_ids, size)[:, ::size]


class AttackScores:
    """All pairs of all attacks, scored.

    better_KP, worse_KP: scores of both captions of each pair; sums: the weighted sums of both;
    heldout_margin, policy_margin (P,): by how much the held-out scorer and the reference policy
    prefer the original; log_ratio (P,): log p(attacked) - log p(original) under the policy, nats.
    """

    def __init__(self, judges: Judges, sample: CaptionSample, scores_KNG: np.ndarray) -> None:
        self.judges, self.sample = judges, sample
        self.pairs, self.omitted = attack_pairs(judges, sample)
        count, images = len(self.pairs), [pair.n for pair in self.pairs]
        ids = [sample.image_ids[n] for n in images]
        better, worse = [p.better for p in self.pairs], [p.worse for p in self.pairs]
        captions = [*zip(images * 2, better + worse, strict=True)]
        unique = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
        both = score_captions(judges, sample, list(unique))[:, [unique[c] for c in captions]]
        self.better_KP, self.worse_KP = both[:, :count], both[:, count:]
        self.sums = group_sums(judges, scores_KNG, sample, images, self.better_KP, self.worse_KP)
        heldout = [judges.heldout_scores(ids, texts) for texts in (better, worse)]
        self.heldout_margin = heldout[0] - heldout[1]
        log_probs = [judges.log_probs(ids, texts) for texts in (better, worse)]
        self.log_ratio = log_probs[1] - log_probs[0]
        self.policy_margin = self._policy_margin(log_probs[0] - log_probs[1])

    def _policy_margin(self, margin_P: np.ndarray) -> np.ndarray:
        """(P,) log p(original) - log p(swapped) with this image, less the same with another one.

        What the language prior prefers cancels: 0 for a policy that ignores the image.
        """
        contested = [p for p, pair in enumerate(self.pairs) if pair.attack.contested]
        other = other_images(len(self.sample.image_ids), 0)
        ids = [self.sample.image_ids[other[self.pairs[p].n]] for p in contested]
        better = self.judges.log_probs(ids, [self.pairs[p].better for p in contested])
        worse = self.judges.log_probs(ids, [self.pairs[p].worse for p in contested])
        margin = np.full(len(self.pairs), np.nan)
        margin[contested] = margin_P[contested] - (better - worse)
        return margin

    def is_attack(self, name: str) -> np.ndarray:
        """(P,) whether a pair is of this attack."""
        return np.array([pair.attack.name == name for pair in self.pairs], bool)

    @property
    def confirmed(self) -> np.ndarray:
        """(P,) whether the original is better: not contested, or scorer and policy prefer it."""
        certain = np.array([not pair.attack.contested for pair in self.pairs], bool)
        return certain | ((self.heldout_margin > 0) & (self.policy_margin > 0))

    def metrics(self) -> Metrics:
        """Per attack: pairs, what was left out, its reach, and the original's win rates."""
        confirmed, metrics = self.confirmed, {}
        for attack in ATTACKS:
            rows = self.is_attack(attack.name)
            kept = rows & confirmed
            self.omitted[attack.name]["contested"] = int((rows & ~confirmed).sum())
            images = [self.pairs[p].n for p in np.flatnonzero(kept)]
            rates = {SUM: wins(self.sums[0][kept], self.sums[1][kept])}
            for k, name in enumerate(self.judges.names):
                rates[name] = wins(self.better_KP[k][kept], self.worse_KP[k][kept])
            has_reach = attack.name != "empty" and kept.any()
            metrics[attack.name] = {
                "about": attack.about,
                "guard": attack.guard,
                "pairs": int(kept.sum()),
                "images": len(set(images)),
                **self.omitted[attack.name],
                "in_reach": float((self.log_ratio[kept] > -REACH).mean()) if has_reach else None,
                "wins": {name: estimate(per_image(won, images)) for name, won in rates.items()},
            }
        return metrics

    def trust(self) -> Metrics:
        """Per kind of swap: how often a judge is right where the two others agree.

        Three judges of a swapped word: the weighted sum, the held-out scorer, the reference policy.
        Where two that learned apart agree they are nearly always right, so the third is measured
        without a label. The policy is held to the held-out scorer alone where the sum has no view.
        """
        metrics: Metrics = {}
        for kind, attack in KINDS.items():
            rows = np.flatnonzero(self.is_attack(attack))
            votes = {
                "reward": np.sign((self.sums[0] - self.sums[1])[rows]),
                "heldout": np.sign(self.heldout_margin[rows]),
                "policy": np.sign(self.policy_margin[rows]),
            }
            images = [self.pairs[p].n for p in rows]
            metrics[kind] = {}
            for judge, vote in votes.items():
                a, b = (v for name, v in votes.items() if name != judge)
                target = np.where(a == 0, b, a)  # a judge without a view leaves it to the other
                kept = ((a == b) | (a == 0)) & (target != 0)
                right = np.where(kept, (vote == target) + 0.5 * (vote == 0), np.nan)
                metrics[kind][judge] = estimate(per_image(right, images))
        return metrics

    def worst(self, count: int) -> list[Metrics]:
        """The pairs in which the weighted sum most prefers the attacked caption, two per attack."""
        gain = self.sums[1] - self.sums[0]
        examples: list[Metrics] = []
        for p in np.argsort(-gain):
            pair = self.pairs[p]
            same = [e for e in examples if e["attack"] == pair.attack.name]
            if len(examples) == count or gain[p] <= 0:
                break
            if not self.confirmed[p] or len(same) == 2:
                continue
            columns = zip(self.judges.names, self.better_KP[:, p], self.worse_KP[:, p], strict=True)
            examples.append(
                {
                    "attack": pair.attack.name,
                    "image_id": self.sample.image_ids[pair.n],
                    "original": pair.better,
                    "attacked": pair.worse,
                    SUM: [float(self.sums[0][p]), float(self.sums[1][p])],
                    "scores": {n: [number(b), number(w)] for n, b, w in columns},
                }
            )
        return examples
