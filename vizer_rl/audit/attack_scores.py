"""Turns attacks into numbers: how often the original wins, and who can be trusted.

Every number is a mean over images with its 95 % bootstrap interval, {"value", "low", "high"}, or
None where there was nothing to measure. "sum" is the weighted sum as training forms it: the row in
question is put beside the sampled captions of its image, and each reward is normalised in that
group where the run does so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..evaluation.statistics import estimate, number, per_image, wins
from ..scoring.aggregation import group_scores
from .attacks import ATTACKS
from .judges import Judges
from .sample import GROUP, CaptionSample, Row, attack_rows, others

SUM = "sum"
REACH = 10.0  # nats: a KL budget of that much per caption is an alarm (REWARDS, combining)
KINDS = {"noun": "noun swapped", "attribute": "attribute swapped"}
Numbers = dict[str, Any]


def scored_sample(
    judges: Judges, said: CaptionSample, view: tuple[str, Any] = ("", None)
) -> np.ndarray:
    """(K, N, G) every reward's scores of the sampled captions."""
    rows = [i for i in said.ids for _ in range(GROUP)]
    captions = [c for some in said.captions for c in some]
    tokens = [t for some in said.tokens for t in some]
    scores = judges.score(rows, captions, tokens, GROUP, view)
    return scores.reshape(len(judges.names), len(said.ids), GROUP)


def weighted_sums(judges: Judges, scores_KNG: np.ndarray) -> np.ndarray:
    """(N, G) what training ranks the captions of each group by, in float64."""
    rewards_NK = torch.from_numpy(scores_KNG).double().flatten(1).T.contiguous()
    weights_K = torch.tensor(judges.weights, dtype=torch.float64)
    total_N = group_scores(rewards_NK, weights_K, scores_KNG.shape[-1], judges.normalised)
    return total_N.view(scores_KNG.shape[1:]).numpy()


def against(
    judges: Judges,
    sample_KNG: np.ndarray,
    said: CaptionSample,
    images: Sequence[int],
    better_KP: np.ndarray,
    worse_KP: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(P,) weighted sums of both rows of each pair, each pair put into the group of its image."""
    originals = np.array([said.original[n] for n in images], int)
    groups = sample_KNG[:, list(images)].copy()
    groups[:, np.arange(len(images)), originals] = better_KP
    groups = np.concatenate([groups, worse_KP[..., None]], -1)
    total = weighted_sums(judges, groups)
    return total[np.arange(len(images)), originals], total[:, -1]


def score_rows(judges: Judges, said: CaptionSample, pairs: Sequence[tuple[int, str]]) -> np.ndarray:
    """(K, P) scores of (image, caption) pairs; a reward that needs whole groups gets them."""
    whole = any(r.declared("groups", False) for r in judges.parts.scoring.rewards)
    size = GROUP if whole else 1
    ids, captions, tokens = [], [], []
    for n, caption in pairs:
        rest = [g for g in range(GROUP) if g != max(0, said.original[n])][: size - 1]
        ids += [said.ids[n]] * size
        captions += [caption, *(said.captions[n][g] for g in rest)]
        tokens += [judges.tokens(caption), *(said.tokens[n][g] for g in rest)]
    return judges.score(ids, captions, tokens, size)[:, ::size]


class AttackScores:
    """All pairs of all attacks, scored.

    rows: the pairs; better_KP, worse_KP: their scores; sums: the weighted sums of both; heldout,
    sight: by how much the held-out scorer and the frozen policy prefer the original; reach: nats by
    which the frozen policy finds the attacked caption likelier than the original.
    """

    def __init__(self, judges: Judges, said: CaptionSample, sample_KNG: np.ndarray) -> None:
        self.judges, self.said = judges, said
        self.rows, self.left = attack_rows(judges, said)
        rows, ids = self.rows, [said.ids[row.n] for row in self.rows]
        pairs = [(r.n, r.better) for r in rows] + [(r.n, r.worse) for r in rows]
        unique = {pair: row for row, pair in enumerate(dict.fromkeys(pairs))}
        both = score_rows(judges, said, list(unique))[:, [unique[pair] for pair in pairs]]
        self.better_KP, self.worse_KP = both[:, : len(rows)], both[:, len(rows) :]
        images = [row.n for row in rows]
        self.sums = against(judges, sample_KNG, said, images, self.better_KP, self.worse_KP)
        heldout = [judges.heldout(ids, [getattr(r, s) for r in rows]) for s in ("better", "worse")]
        self.heldout = heldout[0] - heldout[1]
        told = [judges.log_probs(ids, [getattr(r, s) for r in rows]) for s in ("better", "worse")]
        self.reach = told[1] - told[0]
        self.sight = self._sight(told[0] - told[1])

    def _sight(self, here_P: np.ndarray) -> np.ndarray:
        """(P,) log p(original) - log p(swapped) with this image, less the same with another one.

        What the policy would prefer anyhow cancels: 0 for a policy that does not look.
        """
        contested = [p for p, row in enumerate(self.rows) if row.attack.contested]
        other = others(len(self.said.ids), 0)
        ids = [self.said.ids[other[self.rows[p].n]] for p in contested]
        there = [
            self.judges.log_probs(ids, [getattr(self.rows[p], s) for p in contested])
            for s in ("better", "worse")
        ]
        out = np.full(len(self.rows), np.nan)
        out[contested] = here_P[contested] - (there[0] - there[1])
        return out

    def where(self, attack: str) -> np.ndarray:
        """(P,) whether a pair is of this attack."""
        return np.array([row.attack.name == attack for row in self.rows], bool)

    @property
    def backed(self) -> np.ndarray:
        """(P,) whether the original is better for sure: not contested, or two others say so."""
        sure = np.array([not row.attack.contested for row in self.rows], bool)
        return sure | ((self.heldout > 0) & (self.sight > 0))

    def numbers(self) -> Numbers:
        """Per attack: pairs, what was left out, its reach, and the original's win rates."""
        backed, out = self.backed, {}
        for attack in ATTACKS:
            mine = self.where(attack.name)
            kept = mine & backed
            self.left[attack.name]["contested"] = int((mine & ~backed).sum())
            images = [self.rows[p].n for p in np.flatnonzero(kept)]
            rates = {SUM: wins(self.sums[0][kept], self.sums[1][kept])}
            for k, name in enumerate(self.judges.names):
                rates[name] = wins(self.better_KP[k][kept], self.worse_KP[k][kept])
            said_some = attack.name != "empty" and kept.any()
            out[attack.name] = {
                "about": attack.about,
                "guard": attack.guard,
                "pairs": int(kept.sum()),
                "images": len(set(images)),
                **self.left[attack.name],
                "in_reach": float((self.reach[kept] > -REACH).mean()) if said_some else None,
                "wins": {name: estimate(per_image(won, images)) for name, won in rates.items()},
            }
        return out

    def trust(self) -> Numbers:
        """Per kind of swap: how often a judge is right where the two others agree.

        Three judges of which word fits: the weighted sum, the held-out scorer, the frozen policy.
        Where two that learned apart agree they are nearly always right, so the third is measured
        without a label. The policy is held to the held-out scorer alone where the sum has no view.
        """
        out: Numbers = {}
        for kind, attack in KINDS.items():
            mine = np.flatnonzero(self.where(attack))
            votes = {
                "reward": np.sign((self.sums[0] - self.sums[1])[mine]),
                "heldout": np.sign(self.heldout[mine]),
                "policy": np.sign(self.sight[mine]),
            }
            images = [self.rows[p].n for p in mine]
            out[kind] = {}
            for judge, vote in votes.items():
                a, b = (v for name, v in votes.items() if name != judge)
                told = np.where(a == 0, b, a)  # a judge without a view leaves it to the other
                kept = ((a == b) | (a == 0)) & (told != 0)
                right = np.where(kept, (vote == told) + 0.5 * (vote == 0), np.nan)
                out[kind][judge] = estimate(per_image(right, images))
        return out

    def worst(self, count: int) -> list[Numbers]:
        """The pairs in which the weighted sum prefers the attacked caption most, two per attack."""
        gain = self.sums[1] - self.sums[0]
        found: list[Numbers] = []
        for p in np.argsort(-gain):
            row: Row = self.rows[p]
            same = [e for e in found if e["attack"] == row.attack.name]
            if len(found) == count or gain[p] <= 0:
                break
            if not self.backed[p] or len(same) == 2:
                continue
            columns = zip(self.judges.names, self.better_KP[:, p], self.worse_KP[:, p], strict=True)
            found.append(
                {
                    "attack": row.attack.name,
                    "image_id": self.said.ids[row.n],
                    "original": row.better,
                    "attacked": row.worse,
                    SUM: [float(self.sums[0][p]), float(self.sums[1][p])],
                    "scores": {n: [number(b), number(w)] for n, b, w in columns},
                }
            )
        return found
