"""The reward contract enforced: scores are checked, and a breach is named in one sentence."""

from __future__ import annotations

import asyncio
import math
import signal
import threading
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

import torch

import rewards
from rewards import CaptionBatch

from ..errors import Fault, UserError

Column = list[float | None]
LIMIT_SECONDS = 600.0  # for one reward on the captions of a rollout
TOO_LONG = (
    "reward {name!r} did not come back within {seconds:g} s: it hangs, or what it waits for does"
)


class RewardError(UserError):
    """A reward broke its contract: which, how, and on which caption."""


class RewardFault(RewardError, Fault):
    """A reward hangs, or what it needs is away: no bug of its own, the run may go on later."""


@contextmanager
def time_limit(name: str) -> Iterator[None]:
    """Inside, reward `name` has LIMIT_SECONDS; RewardFault where it takes longer.

    By the alarm signal, so only in the main thread, and where Python code is running.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: Any) -> None:
        raise RewardFault(TOO_LONG.format(name=name, seconds=LIMIT_SECONDS))

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS, LIMIT_SECONDS)  # again if it is caught
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@asynccontextmanager
async def time_limit_async(name: str) -> AsyncIterator[None]:
    """The same of an asynchronous reward."""
    limit = asyncio.timeout(LIMIT_SECONDS)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise RewardFault(TOO_LONG.format(name=name, seconds=LIMIT_SECONDS)) from error


def checked(name: str, scores: Any, batch: CaptionBatch) -> Column:
    """The scores of reward `name` as plain numbers, or RewardError that names what is wrong."""
    if isinstance(scores, str | bytes | dict) or not hasattr(scores, "__iter__"):
        kind = type(scores).__name__
        raise RewardError(
            f"reward {name!r} returned {kind} {scores!r:.60}: it must return a sequence of "
            "scores, one for each caption"
        )
    scores = scores.tolist() if isinstance(scores, torch.Tensor) else list(scores)
    if len(scores) != len(batch.captions):
        raise RewardError(
            f"reward {name!r} returned {len(scores)} scores for "
            f"{len(batch.captions)} captions: it must return one each"
        )
    column: Column = []
    for row, value in enumerate(scores):
        if not (value is None or (isinstance(value, Real) and math.isfinite(value))):
            raise RewardError(
                f"reward {name!r} returned {value!r} for image "
                f"{batch.image_ids[row]!r}, caption {batch.captions[row]!r}: it must return a "
                f"finite number, or None where it cannot judge"
            )
        column.append(None if value is None else float(value))
    return column


def failed(name: str, batch: CaptionBatch, error: Exception) -> RewardError:
    """The error to raise where reward `name` raised one on this batch."""
    kind = RewardFault if isinstance(error, OSError) else RewardError
    return kind(
        f"reward {name!r} failed on a batch that begins with image "
        f"{batch.image_ids[0]!r}, caption {batch.captions[0]!r}: {reason(error)}"
    )


def reason(error: Exception) -> str:
    """The error and where it was raised, for a reward's author needs the line.

    A sentence that we or one of our own rewards wrote for the user stands alone.
    """
    if isinstance(error, UserError):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(frame.filename).is_relative_to(Path(rewards.__file__).parent)
    if isinstance(error, ValueError) and ours:
        return str(error)
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
