"""Turns captions and attacks into numbers: win rates, controls, trust, headroom.

Every number is a mean over images with its 95 % bootstrap interval, {"value", "low", "high"}, or
None where there was nothing to measure. "sum" is the weighted sum as training forms it: the row in
question is put beside the sampled captions of its image, and each reward is normalised in that
group where the run does so.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ..metrics import ranks
from ..metrics.ranks import estimate, per_image, spearman, weighted_sum, wins, within
from .attacks import ATTACKS
from .desk import GROUP, Desk, Row, Said, attack_rows, augmented, blank, others

SUM = "sum"
BEST_OF = (1, 2, 4, 8)
REACH = 10.0  # nats: a KL budget of that much per caption is an alarm (REWARDS, combining)
KINDS = {"noun": "noun swapped", "attribute": "attribute swapped"}
OTHERS, OTHERS_SHORT = 4, 2  # other images that each original is scored with
Numbers = dict[str, Any]


def scored_sample(desk: Desk, said: Said, view: tuple[str, Any] = ("", None)) -> np.ndarray:
    """(K, N, G) every reward's scores of the sampled captions."""
    rows = [i for i in said.ids for _ in range(GROUP)]
    captions = [c for some in said.captions for c in some]
    tokens = [t for some in said.tokens for t in some]
    scores = desk.score(rows, captions, tokens, GROUP, view)
    return scores.reshape(len(desk.names), len(said.ids), GROUP)


def against(
    desk: Desk,
    sample_KNG: np.ndarray,
    said: Said,
    images: Sequence[int],
    better_KP: np.ndarray,
    worse_KP: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(P,) weighted sums of both rows of each pair, each pair put into the group of its image."""
    originals = np.array([said.original[n] for n in images], int)
    groups = sample_KNG[:, list(images)].copy()
    groups[:, np.arange(len(images)), originals] = better_KP
    groups = np.concatenate([groups, worse_KP[..., None]], -1)
    total = weighted_sum(groups, desk.weights, desk.normalised)
    return total[np.arange(len(images)), originals], total[:, -1]


def score_rows(desk: Desk, said: Said, pairs: Sequence[tuple[int, str]]) -> np.ndarray:
    """(K, P) scores of (image, caption) pairs; a reward that needs whole groups gets them."""
    whole = any(r.declared("groups", False) for r in desk.parts.scoring.rewards)
    size = GROUP if whole else 1
    ids, captions, tokens = [], [], []
    for n, caption in pairs:
        rest = [g for g in range(GROUP) if g != max(0, said.original[n])][: size - 1]
        ids += [said.ids[n]] * size
        captions += [caption, *(said.captions[n][g] for g in rest)]
        tokens += [desk.tokens(caption), *(said.tokens[n][g] for g in rest)]
    return desk.score(ids, captions, tokens, size)[:, ::size]


class Attacked:
    """All pairs of all attacks, scored.

    rows: the pairs; better_KP, worse_KP: their scores; sums: the weighted sums of both; heldout,
    sight: by how much the held-out scorer and the frozen policy prefer the original; reach: nats by
    which the frozen policy finds the attacked caption likelier than the original.
    """

    def __init__(self, desk: Desk, said: Said, sample_KNG: np.ndarray) -> None:
        self.desk, self.said = desk, said
        self.rows, self.left = attack_rows(desk, said)
        rows, ids = self.rows, [said.ids[row.n] for row in self.rows]
        both = score_rows(
            desk, said, [(r.n, r.better) for r in rows] + [(r.n, r.worse) for r in rows]
        )
        self.better_KP, self.worse_KP = both[:, : len(rows)], both[:, len(rows) :]
        images = [row.n for row in rows]
        self.sums = against(desk, sample_KNG, said, images, self.better_KP, self.worse_KP)
        heldout = [desk.heldout(ids, [getattr(r, s) for r in rows]) for s in ("better", "worse")]
        self.heldout = heldout[0] - heldout[1]
        told = [desk.log_probs(ids, [getattr(r, s) for r in rows]) for s in ("better", "worse")]
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
            self.desk.log_probs(ids, [getattr(self.rows[p], s) for p in contested])
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
            for k, name in enumerate(self.desk.names):
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
            columns = zip(self.desk.names, self.better_KP[:, p], self.worse_KP[:, p], strict=True)
            found.append(
                {
                    "attack": row.attack.name,
                    "image_id": self.said.ids[row.n],
                    "original": row.better,
                    "attacked": row.worse,
                    SUM: [float(self.sums[0][p]), float(self.sums[1][p])],
                    "scores": {n: [_number(b), _number(w)] for n, b, w in columns},
                }
            )
        return found


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def image_control(desk: Desk, said: Said, sample_KNG: np.ndarray, thorough: bool) -> Numbers:
    """How often an original scores higher with its own image than with another, or with none."""
    attacked, out = said.attacked, {}
    captions = [said.original_of(n) for n in attacked]
    tokens = [said.tokens[n][said.original[n]] for n in attacked]
    own = np.stack([sample_KNG[:, n, said.original[n]] for n in attacked], 1)
    looks = {"other": [others(len(said.ids), t) for t in range(OTHERS if thorough else OTHERS_SHORT)]}
    if thorough:
        looks["blank"] = [list(range(len(said.ids)))]
    for kind, turns in looks.items():
        view = ("#blank", blank) if kind == "blank" else ("", None)
        rates: dict[str, list[np.ndarray]] = {name: [] for name in (SUM, *desk.names)}
        for turn in turns:
            ids = [said.ids[turn[n]] for n in attacked]
            there = desk.score(ids, captions, tokens, 1, view)
            sums = against(desk, sample_KNG, said, attacked, own, there)
            rates[SUM].append(wins(*sums))
            for k, name in enumerate(desk.names):
                rates[name].append(wins(own[k], there[k]))
        out[kind] = {name: estimate(np.nanmean(r, 0)) for name, r in rates.items()}
    return out


def policy_sight(desk: Desk, said: Said) -> Numbers | None:
    """How often the frozen policy finds its caption likelier with its own image than another's."""
    captions = [said.original_of(n) for n in said.attacked]
    own = desk.log_probs([said.ids[n] for n in said.attacked], captions)
    other = others(len(said.ids), 0)
    there = desk.log_probs([said.ids[other[n]] for n in said.attacked], captions)
    told = estimate(wins(own, there))
    return dict(told) if told else None


def with_sum(desk: Desk, sample_KNG: np.ndarray) -> dict[str, np.ndarray]:
    """Every reward's scores (N, G) by name, the weighted sum first."""
    total = weighted_sum(sample_KNG, desk.weights, desk.normalised)
    return {SUM: total} | dict(zip(desk.names, sample_KNG, strict=True))


def order(desk: Desk, said: Said, columns: dict[str, np.ndarray]) -> Numbers:
    """What orders the captions of one image: agreement with the held-out scorer, ties, length."""
    words = np.array([[len(c.split()) for c in some] for some in said.captions], float)
    names = list(columns)
    return {
        "heldout": {n: estimate(within(columns[n], said.heldout)) for n in names},
        "length": {n: estimate(within(columns[n], words)) for n in names},
        "tied": {n: float(np.mean([_tied(group) for group in columns[n]])) for n in names},
        "between": {
            f"{a} ~ {b}": estimate(
                np.array([spearman(x, y) for x, y in zip(columns[a], columns[b], strict=True)])
            )
            for a, b in combinations(desk.names, 2)
        },
        "distinct": float(np.mean([len(set(some)) for some in said.captions])),
    }


def _tied(group: np.ndarray) -> bool:
    there = group[~np.isnan(group)]
    return not there.size or bool(np.ptp(there) < 1e-9)


def noise(desk: Desk, said: Said, columns: dict[str, np.ndarray]) -> Numbers:
    """Spread of a group's scores under mild changes of the image, by their spread over captions."""
    views = [(f"#view{turn}", augmented(turn)) for turn in (1, 2)]
    one, two = (with_sum(desk, scored_sample(desk, said, view)) for view in views)
    out: Numbers = {}
    for name, scores in columns.items():
        apart = one[name] - two[name]
        apart = apart - np.nanmean(apart, 1, keepdims=True)
        spread = np.nanmean(np.nanvar(scores, 1))
        out[name] = float(np.sqrt(np.nanmean(apart**2) / 2 / spread)) if spread > 1e-12 else None
    return out


def headroom(said: Said, total: np.ndarray) -> Numbers:
    """What the weighted sum's picks gain in the eyes of the held-out scorer.

    gain_over_mean: of the best of GROUP over the mean sample; gain_over_greedy: over the caption
    that the policy gives now; ceiling: the same for the held-out scorer's own pick; spread: the
    standard deviation of the held-out score within groups, for scale.
    """
    picks = {n: ranks.best_of(total, said.heldout, n) for n in BEST_OF}
    best, greedy = picks[GROUP], said.heldout_greedy
    return {
        "greedy": estimate(greedy),
        "best_of": {str(n): estimate(values) for n, values in picks.items()},
        "gain_over_mean": estimate(best - said.heldout.mean(1)),
        "gain_over_greedy": estimate(best - greedy),
        "ceiling": estimate(said.heldout.max(1) - greedy),
        "spread": float(said.heldout.std(1).mean()),
    }


def against_truth(said: Said, columns: dict[str, np.ndarray], truths: dict[str, Any]) -> Numbers:
    """On drawn scenes: rank correlation with the truth metric, and the true F1 of the picks."""
    from ..metrics.scene_facts import columns as facts

    told = [truths[i] for i in said.ids for _ in range(GROUP)]
    f1 = facts([c for some in said.captions for c in some], told)["fact_f1"].reshape(-1, GROUP)
    greedy = facts(said.greedy, [truths[i] for i in said.ids])["fact_f1"]
    total = columns[SUM]
    return {
        "within": {name: estimate(within(scores, f1)) for name, scores in columns.items()},
        "overall": {
            name: _number(spearman(scores.ravel(), f1.ravel()))
            for name, scores in columns.items()
            if name != SUM
        },
        "heldout": estimate(within(said.heldout, f1)),
        "f1_greedy": estimate(greedy),
        "f1_mean": estimate(f1.mean(1)),
        "f1_picked": estimate(ranks.best_of(total, f1, GROUP)),
        "f1_best": estimate(f1.max(1)),
    }
