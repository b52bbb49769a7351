"""Rewards of a run around a policy that is loaded already, as training puts them together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console

from ..config.schema import Run
from ..evaluation.run_policy import RunPolicy
from ..policy.load import device, eos_ids
from ..scoring.clip import Encoders
from ..scoring.reward import Reward, opening_of
from ..scoring.reward_functions import RewardFunctions
from . import assemble, splits


def reward_functions(
    policy: RunPolicy, settings: Run, rewards: Sequence[Reward], group: int, console: Console
) -> RewardFunctions:
    """These rewards with the policy before training and the training scorer of `settings`.

    group: captions of an image that are judged together, at most.
    """
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    return RewardFunctions(
        rewards,
        Encoders(settings.scorer.train, device(), dtype, assemble.CACHE, opening_of(rewards)),
        policy.reference,
        eos_ids(policy.model, policy.processor),
        group,
        policy.run.data.prompt,
        warn=console.print,
    )


def prepared(policy: RunPolicy, settings: Run, group: int, console: Console) -> RewardFunctions:
    """The rewards of `settings`, prepared on its training images as for training."""
    rewards = assemble.make_rewards(settings)
    images, _, _ = splits.image_sets(settings, console)
    functions = reward_functions(policy, settings, rewards, group, console)
    components = assemble.Components(
        model=policy.model,
        adapter=None,
        processor=policy.processor,
        vision_cache=policy.vision_cache,
        reference=policy.reference,
        reward_functions=functions,
    )
    with policy.before_training():
        assemble.prepare_rewards(settings, components, images, console.print)
    return functions
