"""Bank of training images and the base policy's captions, from which rewards prepare themselves."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from PIL.Image import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rewards import Bank
from rewards.lib import disk_cache

from ..data.lazy import LazyImages
from ..data.sources import ImageFolder
from ..errors import UserError
from ..policy.captioner import Caption
from ..policy.load import device
from ..scoring.reward_functions import RewardFunctions

T = TypeVar("T")
MAX_IMAGES, MAX_CAPTIONED = 4096, 512
MAX_UNENDED = 0.8  # of the base's captions: in half of the groups of 8 two can still be compared
SHOWN = 256  # images: fewer take no time worth a bar
LINE_SECONDS = 15.0  # between two lines where no terminal shows a bar


def make_bank(
    images: ImageFolder,
    reward_functions: RewardFunctions,
    cache: Path,
    seed: int,
    key: Sequence[Any],
    sample: Callable[[Sequence[Image]], list[Caption]],
) -> Bank:
    """Up to MAX_IMAGES images, and of up to MAX_CAPTIONED of them a caption that `sample` gives.

    key: what the captions depend on beside the images; they are kept in `cache` under its hash, the
    images named by path, size and time of change: a second start decodes none of them.
    """
    ids = images.ids
    if len(ids) > MAX_IMAGES:
        ids = sorted(random.Random(seed).sample(ids, MAX_IMAGES))
    captioned = sorted(random.Random(seed).sample(ids, min(MAX_CAPTIONED, len(ids))))
    bank_images = LazyImages(images.load, ids, identity=images.identity, track=show_progress)
    lazy_images = LazyImages(images.load, captioned, identity=images.identity)
    parts = [*key, device(), *captioned, *map(images.identity, captioned)]
    name = blake2b("\n".join(map(str, parts)).encode(), digest_size=8).hexdigest()
    captions = _cached(cache / f"base-{name}.captions", lambda: sample(lazy_images))
    texts, tokens = [c.text for c in captions], [c.ids for c in captions]
    batch = reward_functions.batch(captioned, lazy_images, texts, tokens)
    return Bank(ids, bank_images, batch, cache)


def show_progress(results: Iterator[T], total: int) -> Iterator[T]:
    """The results as they are; a bar shows their number, off a terminal a line now and then."""
    console = Console()
    if total < SHOWN or not PartialState().is_main_process:
        yield from results
    elif console.is_terminal:
        columns = (TextColumn("bank"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            yield from bar.track(results, total)
    else:
        start = shown = time.monotonic()
        for count, result in enumerate(results, 1):
            yield result
            if (now := time.monotonic()) - shown >= LINE_SECONDS:
                shown, rest = now, (now - start) / count * (total - count)
                console.print(f"bank: {count} of {total} images, {rest:.0f} s to go")


def check_ends(bank: Bank, max_completion_length: int) -> str:
    """The sentence on how many of the base's captions come to no end within so many tokens.

    UserError above MAX_UNENDED. Of a group of eight two come to their end, and can be compared by
    what they say, with probability .50 at a share of .8, .19 at .9. Learning was measured up to a
    share of .6 (experiments/README.md).
    """
    ended = bank.sample.ended or [True] * len(bank.sample.captions)
    share = 1 - sum(ended) / max(1, len(ended))
    line = (
        f"{share:.0%} of {len(ended)} captions sampled from the base come to no end within "
        f"{max_completion_length} tokens (train.max_completion_length)"
    )
    if share > MAX_UNENDED:
        raise UserError(
            f"{line}; allowed: {MAX_UNENDED:.0%}, for a caption without an end cannot be judged. "
            "Set a longer train.max_completion_length, or a data.prompt that asks for less"
        )
    return line


def _cached(path: Path, sample: Callable[[], list[Caption]]) -> list[Caption]:
    """Captions from the file or sampled now; the random state is then the same, to the bit."""
    if (content := disk_cache.read(path)) is not None:
        stored = torch.load(BytesIO(content), weights_only=True)
        torch.set_rng_state(stored["cpu"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(stored["cuda"])
        return [Caption(*pair) for pair in zip(stored["texts"], stored["ids"], strict=True)]
    captions = sample()
    stored = {"texts": [c.text for c in captions], "ids": [c.ids for c in captions]}
    stored["cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        stored["cuda"] = torch.cuda.get_rng_state()
    buffer = BytesIO()
    torch.save(stored, buffer)
    disk_cache.write(path, buffer.getvalue())
    return captions
