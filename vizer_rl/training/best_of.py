"""Best of n at inference: of sampled captions the one that a run's rewards rank first."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL.Image import Image
from rich.console import Console

from rewards.lib.images import Picked

from ..config.schema import Run
from ..evaluation.captioning.row_maker import Choose
from ..evaluation.run_policy import RunPolicy
from ..policy.captioner import Caption
from ..scoring.aggregation import group_scores
from ..scoring.reward_functions import RewardFunctions
from .prepared_rewards import prepared


def make_choose(policy: RunPolicy, settings: Run, n: int, console: Console) -> Choose:
    """What chooses among n captions of an image, as training would rank them.

    settings: the run whose rewards, training scorer and images count, on which the rewards prepare
    themselves.
    """
    own, length = policy.run, "max_completion_length"
    settings = settings.model_copy(
        update={
            "family": own.family,
            "policy": own.policy,
            "data": settings.data.model_copy(update={"prompt": own.data.prompt}),
            "train": settings.train | {length: own.train[length]},
        }
    )
    functions = prepared(policy, settings, n, console)
    normalised = settings.train.get("multi_objective_aggregation") == "normalize_then_sum"
    return BestOf(functions, n, normalised)


class BestOf:
    """Chooses among n captions of each image; normalised: as `aggregation.group_scores`."""

    def __init__(self, functions: RewardFunctions, n: int, normalised: bool) -> None:
        self.functions, self.n, self.normalised = functions, n, normalised

    def __call__(
        self,
        names: Sequence[str],
        images: Sequence[Image],
        candidates: Sequence[Sequence[Caption]],
    ) -> list[int]:
        """The index of the best of each image's candidates, by the run's rewards."""
        rows = [row for row, group in enumerate(candidates) for _ in group]
        captions = [caption for group in candidates for caption in group]
        batch = self.functions.batch(
            [f"to-caption:{names[row]}" for row in rows],  # no id of a training image
            Picked(images, rows),
            [caption.text for caption in captions],
            [caption.ids for caption in captions],
        )
        scores = self.functions.scores(batch)
        columns = [[math.nan if v is None else v for v in c] for c in scores.values()]
        rewards_NK = torch.tensor(columns, dtype=torch.float64).T
        weights_K = torch.tensor([r.weight for r in self.functions.rewards], dtype=torch.float64)
        gates_K = self.functions.gates_K
        values_N = group_scores(rewards_NK, weights_K, gates_K, self.n, self.normalised)
        return values_N.view(-1, self.n).argmax(1).tolist()
