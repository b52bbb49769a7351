"""Evidence of an evaluation: label-free signs of reward hacking and collapse, pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import nan

import numpy as np
import torch

from rewards.repetition import Repetition

from ..algorithms.last_rollout import RolloutRecord
from ..evaluation.statistics import within
from ..scoring.aggregation import group_scores, penalties, weighted_sum

SPREAD = 1e-6  # of a group's scores: what is smaller is none
MIN_GROUPS = 4  # with an order, for the error of their mean correlation to mean anything


@dataclass(frozen=True)
class Evidence:
    """What alarms judge at an evaluation; NaN: not measured.

    Of the greedy captions of the watched images: score and spread (mean and standard deviation of
    the held-out cosines over images), below_best (mean paired difference to the best evaluation
    before) with its standard error, excused (fewer words are doubtful than there), doubtful (share
    of the words that have an alternative), doubtful_rise (over the first evaluation) with its
    standard error, words, distinct_2, repeated_3grams. Of the rollouts since the
    evaluation before, means: reward, reward_std, flat_groups, unended, entropy (nats per token),
    kl_per_caption (nats). Of the last of these, 10 at most: agreement of reward and held-out
    scorer with its standard error over groups; of the last one: reward_agreement of the content
    rewards with each other.
    """

    step: int
    score: float
    spread: float = nan
    below_best: float = nan
    below_best_se: float = nan
    excused: bool = False
    doubtful: float = nan
    doubtful_rise: float = nan
    doubtful_rise_se: float = nan
    words: float = nan
    distinct_2: float = nan
    repeated_3grams: float = nan
    reward: float = nan
    reward_std: float = nan
    flat_groups: float = nan
    unended: float = nan
    entropy: float = nan
    kl_per_caption: float = nan
    agreement: float = nan
    agreement_se: float = nan
    reward_agreement: float = nan


def mean_words(captions: Sequence[str]) -> float:
    """Mean length of captions, in words."""
    return sum(len(caption.split()) for caption in captions) / len(captions)


def distinct_2(captions: Sequence[str]) -> float:
    """Distinct bigrams over all bigrams of the captions; NaN where none has two words.

    Li et al. 2016 (arXiv 1510.03055), over captions of different images.
    """
    pairs = [pair for caption in captions for pair in pairwise(caption.lower().split())]
    return len(set(pairs)) / len(pairs) if pairs else nan


def repeated_3grams(captions: Sequence[str]) -> float:
    """Mean share of a caption's 3-grams (and doubled words) that it has said before."""
    share = Repetition(n=3).share
    return sum(map(share, captions)) / len(captions)


def correlations(x_NG: np.ndarray, y_NG: np.ndarray) -> list[float]:
    """Rank correlations within groups, of those that have an order."""
    values = within(x_NG, y_NG)
    return list(map(float, values[~np.isnan(values)]))


def mean_and_error(correlations: Sequence[float]) -> tuple[float, float]:
    """The mean over groups, its standard error; NaN of none, the error of less than MIN_GROUPS."""
    n, mean = len(correlations), float(np.mean(correlations)) if correlations else nan
    return mean, float(np.std(correlations, ddof=1) / n**0.5) if n >= MIN_GROUPS else nan


class Scored:
    """A rollout as training ranks it: each group's scores, without what fails a gate."""

    def __init__(self, record: RolloutRecord, normalised: bool) -> None:
        """normalised: each reward within its group before it is weighted."""
        weights_K, gates_K = torch.tensor(record.weights), torch.tensor(record.gates)
        rewards = record.rewards_NK.float(), weights_K, gates_K
        self.record, self._failed_N = record, penalties(*rewards) > 0
        self.total_N = weighted_sum(rewards[0], weights_K).nan_to_num(0.0)
        self.scores_NG = group_scores(*rewards, record.group, normalised).view(-1, record.group)

    def flat_groups(self) -> float:
        """Share of groups without spread: training learns nothing from them."""
        spread_N = self.scores_NG.amax(1) - self.scores_NG.amin(1)
        return (spread_N < SPREAD).float().mean().item()

    def agreements(self, heldout_N: torch.Tensor) -> list[float]:
        """Rank correlations, within groups, of reward and held-out cosines (N,)."""
        return correlations(self._grouped(self.scores_NG.flatten()), self._grouped(heldout_N))

    def reward_agreement(self) -> float:
        """The same of each two content rewards; NaN where there is no pair."""
        judges = [k for k, content in enumerate(self.record.content) if content]
        columns = [self._grouped(self.record.rewards_NK[:, k]) for k in judges]
        values = [mean_and_error(correlations(x, y))[0] for x, y in combinations(columns, 2)]
        kept = [value for value in values if value == value]
        return sum(kept) / len(kept) if kept else nan

    def _grouped(self, values_N: torch.Tensor) -> np.ndarray:
        passing = values_N.float().cpu().masked_fill(self._failed_N, nan)
        grouped: np.ndarray = passing.view(-1, self.record.group).numpy()
        return grouped
