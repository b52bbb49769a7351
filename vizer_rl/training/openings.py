"""Checks of a run in which a reward wants captions to begin with a text, before it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.lib.openings import single_opening

from ..errors import UserError
from ..scoring.reward import Reward
from ..scoring.reward_functions import RewardFunctions


def check_single(rewards: Sequence[Reward]) -> None:
    """UserError where two rewards want captions to begin with different texts."""
    try:
        single_opening({reward.opening: reward.name for reward in rewards if reward.opening})
    except ValueError as error:
        raise UserError(f"rewards: {error}") from error


def check_opening(functions: RewardFunctions, vision_cache: Any, args: Any) -> None:
    """UserError where the rewards' opening cannot be put in front of completions.

    args: TRL's config, None where nothing trains.
    """
    if not functions.opening or args is None:
        return
    opening, count = functions.opening, len(functions.policy.token_ids(functions.opening))
    if vision_cache is None or args.use_vllm:
        raise UserError(
            f"rewards: captions are to begin with {opening!r}, which only our own sampler puts in "
            "front of them; allowed: engine.shared_prefix=auto, a family that shares its prompt, "
            "and train.use_vllm=false"
        )
    if 2 * count > args.max_completion_length:
        raise UserError(
            f"train.max_completion_length: {args.max_completion_length}; {opening!r} alone has "
            f"{count} tokens; allowed: {2 * count} or more"
        )
