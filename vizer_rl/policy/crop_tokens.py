"""Image tokens of families that choose a grid of tiles by an image's shape: InternVL, LLaVA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .image_tokens import OwnSettings

UNSCALED = 1.1  # of LLaVA-OneVision's processor and model


@dataclass(frozen=True)
class CropTokens(OwnSettings):
    """The same number for each tile, as in InternVL: one, or up to n tiles and the whole image."""

    default: int | None = None
    smallest: str = "one tile"

    def of_image(self, processor: Any, height: int, width: int) -> int:
        """Tokens of all tiles and of the whole image beside them."""
        crops = {"crop_to_patches": True}  # as the processor asks for them
        tiles = processor.image_processor.get_number_of_image_patches(height, width, crops)
        return int(tiles) * int(processor.image_seq_length)

    def maximum(self, processor: Any, budget: int) -> int:
        """Those of an image of the shape that takes all tiles."""
        tiles = self._tiles(processor, budget)
        return (1 if tiles == 1 else tiles + 1) * int(processor.image_seq_length)

    def limit(self, processor: Any, budget: int) -> None:
        """Bound the number of tiles."""
        images = processor.image_processor
        images.max_patches = self._tiles(processor, budget)

    def split(self, processor: Any, splitting: bool) -> None:
        """Without: one tile, the whole image."""
        images = processor.image_processor
        if not splitting:
            images.max_patches = 1

    def _tiles(self, processor: Any, budget: int) -> int:
        """Tiles of an image, without the whole beside them: as many as the budget allows."""
        affordable = budget // int(processor.image_seq_length) - 1
        return min(int(processor.image_processor.max_patches), max(1, affordable))


@dataclass(frozen=True)
class GridTokens(OwnSettings):
    """A grid of tiles and the whole image, as in LLaVA-OneVision.

    The grids are a list in the image processor's settings, and the same one in the model's config:
    of their patches, those that only pad the image are left out.
    """

    default: int | None = None
    smallest: str = "one tile and the whole image"

    def of_image(self, processor: Any, height: int, width: int) -> int:
        """Tokens in the grid that fits best."""
        numbers = processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
        return int(numbers["num_image_tokens"][0])

    def maximum(self, processor: Any, budget: int) -> int:
        """Those of an image that fills the largest grid."""
        return max(_largest(processor, grid) for grid in self._grids(processor, budget))

    def limit(self, processor: Any, budget: int) -> None:
        """Leave out the grids that take more."""
        images = processor.image_processor
        images.image_grid_pinpoints = self._grids(processor, budget)

    def split(self, processor: Any, splitting: bool) -> None:
        """Without: the smallest grid alone."""
        if not splitting:
            images = processor.image_processor
            images.image_grid_pinpoints = [min(images.image_grid_pinpoints)]

    def model_settings(self, processor: Any) -> dict[str, Any]:
        """The grids."""
        return {"image_grid_pinpoints": processor.image_processor.image_grid_pinpoints}

    def _grids(self, processor: Any, budget: int) -> list[list[int]]:
        """The grids that an image may fill within a budget; the smallest one stays in any case."""
        grids: list[list[int]] = processor.image_processor.image_grid_pinpoints
        fitting = [grid for grid in grids if _largest(processor, grid) <= budget]
        return fitting or [min(grids)]


def _largest(processor: Any, grid: Sequence[int]) -> int:
    """Tokens of the whole image, of the grid at most, and one at the end of each line of it.

    A grid of more patches than the model takes is scaled down, but only from UNSCALED times as many
    along each side.
    """
    patches, edge = int(processor.num_image_tokens), processor.image_processor.size["height"]
    rows, columns = (length // edge for length in grid)
    tiles = int(processor.vision_aspect_ratio.rpartition("_")[2])
    shown = min(rows * columns * patches, int(UNSCALED**2 * tiles * patches))
    return patches + shown + rows * math.isqrt(patches)
