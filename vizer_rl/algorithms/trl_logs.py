"""TRL's logs in our words: keys of reward metrics, completions as text, advantages replaced."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from ..policy.chat import message_text


def rename_reward_metrics(metrics: dict[str, list[float]], rewards: Iterable[str]) -> None:
    """`rewards/NAME/mean` and `/std` become `reward/NAME` and `reward/NAME/std`, beside ours."""
    for name in rewards:
        for statistic, key in (("mean", f"reward/{name}"), ("std", f"reward/{name}/std")):
            if f"rewards/{name}/{statistic}" in metrics:
                metrics[key] = metrics.pop(f"rewards/{name}/{statistic}")


def messages_to_text(column: deque[Any]) -> None:
    """Prompts or completions as text: tables of W&B refuse TRL's lists of messages."""
    column.extend([message_text(column.popleft()) for _ in range(len(column))])


def replace_newest(column: deque[Any], values: list[float]) -> None:
    """The newest entries of a column become these."""
    for _ in values:
        column.pop()
    column.extend(values)
