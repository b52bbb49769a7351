"""Bank of training images and the base policy's captions, from which rewards prepare themselves."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from rewards import Bank
from rewards.lib.images import image_hash

from ..data.lazy import LazyImages
from ..data.sources import ImageFolder
from ..policy.captioner import Caption
from ..policy.load import device
from ..scoring.reward_functions import RewardFunctions

MAX_IMAGES, MAX_CAPTIONED = 4096, 512


def make_bank(
    images: ImageFolder,
    reward_functions: RewardFunctions,
    cache: Path,
    seed: int,
    key: Sequence[Any],
    sample: Callable[[Sequence[Image]], list[Caption]],
) -> Bank:
    """Up to MAX_IMAGES images, and of up to MAX_CAPTIONED of them a caption that `sample` gives.

    key: what the captions depend on beside the images; they are kept in `cache` under its hash.
    """
    ids = images.ids
    if len(ids) > MAX_IMAGES:
        ids = sorted(random.Random(seed).sample(ids, MAX_IMAGES))
    captioned = sorted(random.Random(seed).sample(ids, min(MAX_CAPTIONED, len(ids))))
    lazy_images = LazyImages(images.load, captioned)
    parts = [*key, device(), *captioned, *(image_hash(image) for image in lazy_images)]
    name = blake2b("\n".join(map(str, parts)).encode(), digest_size=8).hexdigest()
    captions = _cached(cache / f"base-{name}.pt", lambda: sample(lazy_images))
    texts, tokens = [c.text for c in captions], [c.ids for c in captions]
    batch = reward_functions.batch(captioned, lazy_images, texts, tokens)
    return Bank(ids, LazyImages(images.load, ids), batch, cache)


def _cached(path: Path, sample: Callable[[], list[Caption]]) -> list[Caption]:
    """Captions from the file or sampled now; the random state is then the same, to the bit."""
    if path.exists():
        stored = torch.load(path, weights_only=True)
        torch.set_rng_state(stored["cpu"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(stored["cuda"])
        return [Caption(*pair) for pair in zip(stored["texts"], stored["ids"], strict=True)]
    captions = sample()
    stored = {"texts": [c.text for c in captions], "ids": [c.ids for c in captions]}
    stored["cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        stored["cuda"] = torch.cuda.get_rng_state()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(stored, path)
    return captions
