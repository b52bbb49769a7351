"""Image tokens: how many an image takes in the language model, and the budget that bounds them.

Image processors give a large image more tokens, the hub's of Qwen2-VL up to 16,384. Every function
takes a processor of transformers and leaves the arithmetic of an image's size to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median_low
from typing import Any, Protocol

from transformers.image_utils import SizeDict

from ..data.decode import MAX_ASPECT
from ..errors import UserError


class ImageTokens(Protocol):
    """How a family's processor turns an image into tokens, and how to keep it to a budget."""

    @property
    def default(self) -> int | None:
        """The budget where a run sets none; None: the processor's own."""

    @property
    def smallest(self) -> str:
        """What takes as many tokens as the smallest budget allowed."""

    def of_image(self, processor: Any, height: int, width: int) -> int:
        """Tokens of an image of this many pixels, upright or not."""

    def maximum(self, processor: Any, budget: int) -> int:
        """Tokens of the image that takes the largest number under a budget."""

    def limit(self, processor: Any, budget: int) -> None:
        """Set the image processor to the budget; what is smaller already stays as it is."""

    def split(self, processor: Any, splitting: bool) -> None:
        """Let the image processor cut large images into tiles, or not."""

    def model_settings(self, processor: Any) -> dict[str, Any]:
        """What the model's config must have in common with the processor as it is set."""


class OwnSettings:
    """What most families have: no tiles, and nothing of the model's that depends on tokens."""

    def split(self, processor: Any, splitting: bool) -> None:
        """Nothing: there are no tiles."""

    def model_settings(self, processor: Any) -> dict[str, Any]:
        """None."""
        return {}


@dataclass(frozen=True)
class FixedTokens(OwnSettings):
    """The same number for every image, as in Gemma 3 without its crops."""

    default: int | None = None
    smallest: str = "one image"

    def of_image(self, processor: Any, height: int, width: int) -> int:
        """The processor's number."""
        return int(processor.image_seq_length)

    def maximum(self, processor: Any, budget: int) -> int:
        """The same."""
        return int(processor.image_seq_length)

    def limit(self, processor: Any, budget: int) -> None:
        """Nothing: it is what it is."""


@dataclass(frozen=True)
class PixelTokens(OwnSettings):
    """A token for each block of merged patches, as Qwen2-VL has it: the bound is on pixels."""

    default: int | None = None
    smallest: str = f"an image {MAX_ASPECT} times as long as it is wide"

    def of_image(self, processor: Any, height: int, width: int) -> int:
        """Blocks of the resized image; ValueError for one longer than 1:200."""
        images = processor.image_processor
        patches: int = images.get_number_of_image_patches(height, width, {})
        return patches // int(images.merge_size) ** 2

    def maximum(self, processor: Any, budget: int) -> int:
        """The budget, but of a strip one block wide, or of a small image that is enlarged."""
        size, block = processor.image_processor.size, _block(processor.image_processor)
        pixels = min(size["longest_edge"], budget * block)
        strip = math.isqrt(MAX_ASPECT * pixels // block)
        return max(pixels // block, strip, _enlarged(size["shortest_edge"] / block))

    def limit(self, processor: Any, budget: int) -> None:
        """Bound the pixels of a resized image (its `longest_edge`, as transformers names it)."""
        images = processor.image_processor
        pixels = budget * _block(images)
        if pixels < images.size["longest_edge"]:
            images.size = SizeDict(**{**dict(images.size), "longest_edge": pixels})


def _block(images: Any) -> int:
    """Pixels of the image that become one token."""
    return int(images.patch_size * images.merge_size) ** 2


def _enlarged(blocks: float) -> int:
    """Maximum of ceil(x) ceil(y) where x y = blocks and y / x is at most MAX_ASPECT.

    So a processor rounds the sides of an image that it enlarges to its minimum size.
    """
    longest = math.sqrt(blocks * MAX_ASPECT)
    rows = range(math.ceil(math.sqrt(blocks / MAX_ASPECT)), math.ceil(math.sqrt(blocks)) + 1)
    return max(n * math.ceil(min(blocks / (n - 1), longest) if n > 1 else longest) for n in rows)


@dataclass(frozen=True)
class TileTokens(OwnSettings):
    """The same number for each tile, as in Idefics3: one, or n × m tiles and the whole image."""

    default: int | None = None
    smallest: str = "one tile"

    def of_image(self, processor: Any, height: int, width: int) -> int:
        """Tokens of all tiles."""
        tiles, _, _ = processor.image_processor.get_number_of_image_patches(height, width, {})
        return max(1, tiles) * int(processor.image_seq_len)

    def maximum(self, processor: Any, budget: int) -> int:
        """Those of a square image."""
        side = self._side(processor, budget)
        return (1 if side == 1 else side**2 + 1) * int(processor.image_seq_len)

    def limit(self, processor: Any, budget: int) -> None:
        """Bound the longest edge, in whole tiles, before an image is split."""
        images = processor.image_processor
        pixels = self._side(processor, budget) * images.max_image_size["longest_edge"]
        if images.do_image_splitting and pixels < images.size["longest_edge"]:
            images.size = SizeDict(**{**dict(images.size), "longest_edge": pixels})

    def split(self, processor: Any, splitting: bool) -> None:
        """By the image processor's own switch."""
        image_processor = processor.image_processor
        image_processor.do_image_splitting = splitting

    def _side(self, processor: Any, budget: int) -> int:
        """Tiles along the longest edge: as many as a square image may have, one at least."""
        images = processor.image_processor
        if not images.do_image_splitting:
            return 1
        own = math.ceil(images.size["longest_edge"] / images.max_image_size["longest_edge"])
        return min(own, math.isqrt(max(1, budget // int(processor.image_seq_len) - 1)))


def bound_images(
    processor: Any, rule: ImageTokens, splitting: bool, max_image_tokens: int | None
) -> None:
    """Set a processor to `policy.image_splitting` and `policy.max_image_tokens`.

    No usable image then takes more tokens. UserError with the smallest number allowed where the
    processor cannot keep to the budget.
    """
    rule.split(processor, splitting)
    budget = rule.default if max_image_tokens is None else max_image_tokens
    if budget is None:
        return
    if rule.maximum(processor, budget) > budget:
        allowed = next(n for n in count(budget) if rule.maximum(processor, n) <= n)
        raise UserError(
            f"policy.max_image_tokens: {budget}; allowed for this model's processor: at least "
            f"{allowed}, the tokens of {rule.smallest}"
        )
    rule.limit(processor, budget)


def image_tokens_sentence(
    processor: Any, rule: ImageTokens, sizes: Sequence[tuple[int, int]]
) -> str:
    """Smallest, median and largest number of tokens of images of these (width, height)."""
    tokens = [rule.of_image(processor, height, width) for width, height in sizes]
    return (
        f"image tokens: {min(tokens)} smallest, {median_low(tokens)} median, {max(tokens)} largest"
        f" of {len(tokens)} images (policy.max_image_tokens)"
    )
