"""Rewards of finished captions: what each reward of a run says of them, and their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers import set_seed

from ..algorithms.advantages import Moments, caption_scores
from ..data.lazy import LazyImages
from ..data.sources import ImageFolder
from ..evaluation.against_controls import CaptionRewards
from ..evaluation.evaluate import MakeRewards
from ..evaluation.run_policy import RunPolicy
from ..evaluation.tables import PlainConsole
from ..policy.captioner import Caption
from ..scoring.aggregation import rank_failed
from ..scoring.reward import Reward
from ..scoring.reward_functions import RewardFunctions
from .prepared_rewards import prepared, reward_functions

IMAGES_PER_BATCH = 16  # images whose candidates are scored together
SIDES = 2  # captions of an image, before training and after


def judge_anew(
    policy: RunPolicy, images: ImageFolder, captions: dict[str, list[str]]
) -> CaptionRewards:
    """The run's rewards of captions by row; the rewards prepare themselves again, without a word.

    Raises what they raise, UserError where they or their training images are gone.
    """
    console = PlainConsole(quiet=True)  # what they remark was printed when the run began
    set_seed(policy.run.seed)
    functions = prepared(policy, policy.run, SIDES, console)
    return caption_rewards(functions, policy.reference.max_new_tokens, images, captions)


def judge_by(rewards: Sequence[Reward]) -> MakeRewards:
    """What judges captions by rewards that are prepared, as they are at the end of a training."""

    def judge(
        policy: RunPolicy, images: ImageFolder, captions: dict[str, list[str]]
    ) -> CaptionRewards:
        console = PlainConsole(quiet=True)
        functions = reward_functions(policy, policy.run, rewards, SIDES, console)
        return caption_rewards(functions, policy.reference.max_new_tokens, images, captions)

    return judge


def caption_rewards(
    functions: RewardFunctions,
    max_tokens: int,
    images: ImageFolder,
    captions: dict[str, list[str]],
) -> CaptionRewards:
    """Each image's raw rewards by row, and their "sum", standardised over all of these captions.

    max_tokens: a caption of as many did not come to its end.
    """
    end = min(functions.eos_ids)

    def completion(text: str) -> Caption:  # a greedy caption below the limit came to an end
        ids = functions.policy.token_ids(text)
        return Caption(text, ids if len(ids) >= max_tokens else [*ids, end])

    groups = [[completion(t) for t in texts] for texts in zip(*captions.values(), strict=True)]
    rewards_NRK = raw_rewards(functions, images, groups)
    sums_NR = standardised_sums(functions, rewards_NRK)
    table_NRK = torch.cat([rewards_NRK, sums_NR[..., None]], -1)
    names = [*(reward.name for reward in functions.rewards), "sum"]
    return {
        row: [
            {n: None if math.isnan(v) else v for n, v in zip(names, values, strict=True)}
            for values in table_NRK[:, k].tolist()
        ]
        for k, row in enumerate(captions)
    }


def raw_rewards(
    functions: RewardFunctions, folder: ImageFolder, captions: Sequence[Sequence[Caption]]
) -> torch.Tensor:
    """(N, n, K) raw rewards of n captions of each of N images."""
    chunks = []
    for start in range(0, len(captions), IMAGES_PER_BATCH):
        chunk = captions[start : start + IMAGES_PER_BATCH]
        ids = [i for i, c in zip(folder.ids[start:], chunk, strict=False) for _ in c]
        flat = [c for candidates in chunk for c in candidates]
        batch = functions.batch(
            [f"to-judge:{image_id}" for image_id in ids],  # no id of a training image
            LazyImages(folder.load, ids),
            [c.text for c in flat],
            [c.ids for c in flat],
        )
        scores = functions.scores(batch)
        columns = [[math.nan if v is None else v for v in c] for c in scores.values()]
        chunks.append(torch.tensor(columns).T.reshape(len(chunk), -1, len(columns)))
    return torch.cat(chunks)


def standardised_sums(functions: RewardFunctions, rewards: torch.Tensor) -> torch.Tensor:
    """(N, n): the weighted sum of rewards (N, n, K), each standardised over all captions.

    A caption that fails a gate has the last rank among those of its image.
    """
    weights = torch.tensor([r.weight for r in functions.rewards])
    flat_NK = rewards.flatten(0, 1)
    moments = Moments(flat_NK.shape[1])
    scores = caption_scores(flat_NK, weights, functions.gates_K, moments)
    return rank_failed(*scores, rewards.shape[1]).view(rewards.shape[:2])
