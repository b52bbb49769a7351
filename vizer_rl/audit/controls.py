"""Turns scores into numbers: what the rewards go by, and what there is to gain.

Every number is a mean over images with its 95 % bootstrap interval, or None where there was nothing
to measure; "sum" is the weighted sum as training forms it.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from ..data.perturb import augmented, blank
from ..evaluation import statistics
from ..evaluation.statistics import (
    estimate,
    mean,
    number,
    per_image,
    spearman,
    wins,
    within,
)
from .attack_scores import SUM, Numbers, against, scored_sample, weighted_sums
from .judges import Judges
from .sample import GROUP, CaptionSample, others

BEST_OF = (1, 2, 4, GROUP)
OTHERS, OTHERS_SHORT = 4, 2  # other images that each original is scored with


def image_control(
    judges: Judges, said: CaptionSample, sample_KNG: np.ndarray, thorough: bool
) -> Numbers:
    """How often an original scores higher with its own image than with another, or with none."""
    attacked, out = said.attacked, {}
    captions = [said.original_of(n) for n in attacked]
    tokens = [said.tokens[n][said.original[n]] for n in attacked]
    own = np.stack([sample_KNG[:, n, said.original[n]] for n in attacked], 1)
    count = OTHERS if thorough else OTHERS_SHORT
    looks = {"other": [others(len(said.ids), t) for t in range(count)]}
    if thorough:
        looks["blank"] = [list(range(len(said.ids)))]
    for kind, turns in looks.items():
        view = ("#blank", blank) if kind == "blank" else ("", None)
        rates: dict[str, list[np.ndarray]] = {name: [] for name in (SUM, *judges.names)}
        for turn in turns:
            ids = [said.ids[turn[n]] for n in attacked]
            there = judges.score(ids, captions, tokens, 1, view)
            sums = against(judges, sample_KNG, said, attacked, own, there)
            rates[SUM].append(wins(*sums))
            for k, name in enumerate(judges.names):
                rates[name].append(wins(own[k], there[k]))
        images = [n for _ in turns for n in attacked]
        out[kind] = {
            name: estimate(per_image(np.concatenate(r), images)) for name, r in rates.items()
        }
    return out


def policy_sight(judges: Judges, said: CaptionSample) -> Numbers | None:
    """How often the frozen policy finds its caption likelier with its own image than another's."""
    captions = [said.original_of(n) for n in said.attacked]
    own = judges.log_probs([said.ids[n] for n in said.attacked], captions)
    other = others(len(said.ids), 0)
    there = judges.log_probs([said.ids[other[n]] for n in said.attacked], captions)
    told = estimate(wins(own, there))
    return dict(told) if told else None


def with_sum(judges: Judges, sample_KNG: np.ndarray) -> dict[str, np.ndarray]:
    """Every reward's scores (N, G) by name, the weighted sum first."""
    total = weighted_sums(judges, sample_KNG)
    return {SUM: total} | dict(zip(judges.names, sample_KNG, strict=True))


def order(judges: Judges, said: CaptionSample, columns: dict[str, np.ndarray]) -> Numbers:
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
            for a, b in combinations(judges.names, 2)
        },
        "distinct": float(np.mean([len(set(some)) for some in said.captions])),
    }


def _tied(group: np.ndarray) -> bool:
    there = group[~np.isnan(group)]
    return not there.size or bool(np.ptp(there) < 1e-9)


def noise(judges: Judges, said: CaptionSample, columns: dict[str, np.ndarray]) -> Numbers:
    """Spread of a group's scores under mild changes of the image, by their spread over captions."""
    views = [(f"#view{turn}", augmented(turn)) for turn in (1, 2)]
    one, two = (with_sum(judges, scored_sample(judges, said, view)) for view in views)
    out: Numbers = {}
    for name, scores in columns.items():
        apart = one[name] - two[name]
        apart = apart - mean(apart)[:, None]
        spread = np.nanmean(mean((scores - mean(scores)[:, None]) ** 2))
        out[name] = float(np.sqrt(np.nanmean(apart**2) / 2 / spread)) if spread > 1e-12 else None
    return out


def headroom(said: CaptionSample, total: np.ndarray) -> Numbers:
    """What the weighted sum's picks gain in the eyes of the held-out scorer.

    gain_over_mean: of the best of GROUP over the mean sample; gain_over_greedy: over the caption
    that the policy gives now; ceiling: the same for the held-out scorer's own pick; spread: the
    standard deviation of the held-out score within groups, for scale.
    """
    picks = {n: statistics.best_of(total, said.heldout, n) for n in BEST_OF}
    best, greedy = picks[GROUP], said.heldout_greedy
    return {
        "greedy": estimate(greedy),
        "best_of": {str(n): estimate(values) for n, values in picks.items()},
        "gain_over_mean": estimate(best - said.heldout.mean(1)),
        "gain_over_greedy": estimate(best - greedy),
        "ceiling": estimate(said.heldout.max(1) - greedy),
        "spread": float(said.heldout.std(1).mean()),
    }


def against_truth(
    said: CaptionSample, columns: dict[str, np.ndarray], truths: dict[str, Any]
) -> Numbers:
    """On drawn scenes: rank correlation with the truth metric, and the true F1 of the picks."""
    from ..evaluation.metrics.scene_facts import columns as facts

    told = [truths[i] for i in said.ids for _ in range(GROUP)]
    f1 = facts([c for some in said.captions for c in some], told)["fact_f1"].reshape(-1, GROUP)
    greedy = facts(said.greedy, [truths[i] for i in said.ids])["fact_f1"]
    total = columns[SUM]
    return {
        "within": {name: estimate(within(scores, f1)) for name, scores in columns.items()},
        "overall": {
            name: number(spearman(scores.ravel(), f1.ravel()))
            for name, scores in columns.items()
            if name != SUM
        },
        "heldout": estimate(within(said.heldout, f1)),
        "f1_greedy": estimate(greedy),
        "f1_mean": estimate(f1.mean(1)),
        "f1_picked": estimate(statistics.best_of(total, f1, GROUP)),
        "f1_best": estimate(f1.max(1)),
    }
