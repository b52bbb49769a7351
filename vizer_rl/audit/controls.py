"""Control experiments: what the rewards depend on, and what selection by them could gain.

Every metric is a mean over images with its 95 % bootstrap interval, or None where there was nothing
to measure; "sum" is the weighted sum as training forms it.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from rewards.lib.lexicon import Lexicon
from rewards.lib.word_classes import WordClasses

from ..data.perturb import augmented, blank
from ..evaluation import statistics
from ..evaluation.doubtful_words import doubtful_counts
from ..evaluation.statistics import estimate, mean, number, ratio, spearman, within
from .caption_scores import SUM, Metrics, group_sums, weighted_sums
from .judges import UNCHANGED, Judges
from .picks import picks, signs
from .sample import GROUP_SIZE, CaptionSample, other_images, sample_scores

BEST_OF = (1, 2, 4, GROUP_SIZE)
OTHER_IMAGES, OTHER_IMAGES_SHORT = 4, 2  # that each original is scored with


def image_control(
    judges: Judges, sample: CaptionSample, scores_KNG: np.ndarray, thorough: bool
) -> Metrics:
    """How often an original scores higher with its own image than with another, or with none."""
    attacked, metrics = sample.attacked, {}
    captions = [sample.original(n) for n in attacked]
    completion_ids = [sample.completion_ids[n][sample.original_idx[n]] for n in attacked]
    own = np.stack([scores_KNG[:, n, sample.original_idx[n]] for n in attacked], 1)
    count = OTHER_IMAGES if thorough else OTHER_IMAGES_SHORT
    controls = {"other": [other_images(len(sample.image_ids), t) for t in range(count)]}
    if thorough:
        controls["blank"] = [list(range(len(sample.image_ids)))]
    for kind, turns in controls.items():
        perturbation = ("#blank", blank) if kind == "blank" else UNCHANGED
        rates: dict[str, list[np.ndarray]] = {name: [] for name in (SUM, *judges.names)}
        for turn in turns:
            ids = [sample.image_ids[turn[n]] for n in attacked]
            other = judges.score(ids, captions, completion_ids, 1, perturbation)
            rates[SUM].append(signs(*group_sums(judges, scores_KNG, sample, attacked, own, other)))
            for k, name in enumerate(judges.names):
                rates[name].append(signs(own[k], other[k]))
        images = [n for _ in turns for n in attacked]
        metrics[kind] = {name: picks(np.concatenate(r), images) for name, r in rates.items()}
    return metrics


def policy_control(judges: Judges, sample: CaptionSample) -> Metrics | None:
    """How often the reference policy finds a caption likelier with its own image than another's."""
    captions = [sample.original(n) for n in sample.attacked]
    own = judges.log_probs([sample.image_ids[n] for n in sample.attacked], captions)
    shuffled = other_images(len(sample.image_ids), 0)
    other = judges.log_probs([sample.image_ids[shuffled[n]] for n in sample.attacked], captions)
    rate = picks(signs(own, other), sample.attacked)
    return dict(rate) if rate else None


def with_sum(judges: Judges, scores_KNG: np.ndarray) -> dict[str, np.ndarray]:
    """Scores (N, G) by name: the weighted sum, then each reward."""
    total = weighted_sums(judges, scores_KNG)
    return {SUM: total} | dict(zip(judges.names, scores_KNG, strict=True))


def order(judges: Judges, sample: CaptionSample, columns: dict[str, np.ndarray]) -> Metrics:
    """What orders the captions of one image: agreement with the held-out scorer, ties, length."""
    words = np.array([[len(c.split()) for c in group] for group in sample.captions], float)
    names = list(columns)
    return {
        "heldout": {n: estimate(within(columns[n], sample.heldout_scores)) for n in names},
        "length": {n: estimate(within(columns[n], words)) for n in names},
        "tied": {n: float(np.mean([_tied(group) for group in columns[n]])) for n in names},
        "between": {
            f"{a} ~ {b}": estimate(
                np.array([spearman(x, y) for x, y in zip(columns[a], columns[b], strict=True)])
            )
            for a, b in combinations(judges.names, 2)
        },
        "distinct": float(np.mean([len(set(group)) for group in sample.captions])),
    }


def _tied(group: np.ndarray) -> bool:
    judged = group[~np.isnan(group)]
    return not judged.size or bool(np.ptp(judged) < 1e-9)


def noise(judges: Judges, sample: CaptionSample, columns: dict[str, np.ndarray]) -> Metrics:
    """Spread of a group's scores under mild changes of the image, by their spread over captions."""
    views = [(f"#view{turn}", augmented(turn)) for turn in (1, 2)]
    first, second = (with_sum(judges, sample_scores(judges, sample, view)) for view in views)
    ratios: Metrics = {}
    for name, scores in columns.items():
        change = first[name] - second[name]
        change = change - mean(change)[:, None]
        spread = np.nanmean(mean((scores - mean(scores)[:, None]) ** 2))
        variance = np.nanmean(change**2) / 2
        ratios[name] = float(np.sqrt(variance / spread)) if spread > 1e-12 else None
    return ratios


def headroom(sample: CaptionSample, total: np.ndarray) -> Metrics:
    """What the weighted sum's picks gain under the held-out scorer.

    gain_over_mean: of the best of GROUP_SIZE over the mean sample; gain_over_greedy: over the
    policy's greedy caption; ceiling: the same for the held-out scorer's own pick; spread: the
    standard deviation of the held-out score within groups, for scale.
    """
    picks = {n: statistics.best_of(total, sample.heldout_scores, n) for n in BEST_OF}
    best, greedy = picks[GROUP_SIZE], sample.greedy_heldout_scores
    return {
        "greedy": estimate(greedy),
        "best_of": {str(n): estimate(values) for n, values in picks.items()},
        "gain_over_mean": estimate(best - sample.heldout_scores.mean(1)),
        "gain_over_greedy": estimate(best - greedy),
        "ceiling": estimate(sample.heldout_scores.max(1) - greedy),
        "spread": float(sample.heldout_scores.std(1).mean()),
    }


def fewer_doubtful(judges: Judges, sample: CaptionSample, total: np.ndarray) -> Metrics | None:
    """What the sum's picks gain under a dial, which asks for less, so that a cosine falls.

    greedy, picked: doubtful words (evaluation/doubtful_words.py) as a share of those that have an
    alternative, in the policy's greedy captions and in the best of GROUP_SIZE; gain: by how much
    that of the picks is smaller; words: how many the picks have, by those of the greedy captions.
    None where no word has an alternative.
    """
    encoder, ids = judges.parts.heldout, sample.image_ids
    classes = WordClasses(Lexicon.learn(judges.parts.bank.sample.captions))
    features = encoder.image_features(ids, judges.images(ids))
    best = np.nan_to_num(total, nan=-np.inf).argmax(1)
    picked = [group[g] for group, g in zip(sample.captions, best, strict=True)]
    shares = dict[str, statistics.CorpusMetric]()
    for name, captions in (("greedy", sample.greedy_captions), ("picked", picked)):
        counts = doubtful_counts(encoder, features, captions, classes)
        shares[name] = statistics.CorpusMetric(np.stack(counts, 1).astype(float), ratio)
    words = [share.rows_NS[:, 1].sum() for share in shares.values()]
    if not words[0]:
        return None
    gain = statistics.difference(shares["greedy"], shares["picked"])
    return {**statistics.estimates({**shares, "gain": gain}), "words": float(words[1] / words[0])}


def against_truth(
    sample: CaptionSample, columns: dict[str, np.ndarray], truths: dict[str, Any]
) -> Metrics:
    """On drawn scenes: rank correlation with the truth metric, and the true F1 of the picks."""
    from ..evaluation.metrics.scene_facts import columns as facts

    repeated = [truths[i] for i in sample.image_ids for _ in range(GROUP_SIZE)]
    captions = [c for group in sample.captions for c in group]
    f1 = facts(captions, repeated)["fact_f1"].reshape(-1, GROUP_SIZE)
    greedy = facts(sample.greedy_captions, [truths[i] for i in sample.image_ids])["fact_f1"]
    total = columns[SUM]
    return {
        "within": {name: estimate(within(scores, f1)) for name, scores in columns.items()},
        "overall": {
            name: number(spearman(scores.ravel(), f1.ravel()))
            for name, scores in columns.items()
            if name != SUM
        },
        "heldout": estimate(within(sample.heldout_scores, f1)),
        "f1_greedy": estimate(greedy),
        "f1_mean": estimate(f1.mean(1)),
        "f1_picked": estimate(statistics.best_of(total, f1, GROUP_SIZE)),
        "f1_best": estimate(f1.max(1)),
    }
