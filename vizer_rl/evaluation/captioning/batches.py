"""Batches of decoded images, read ahead; an image that cannot be used is listed, not raised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from PIL.Image import Image

from ...data.lazy import ahead
from ...errors import ImageError
from ...policy.batches import batches
from ...policy.captioner import DECODED
from ...policy.load import device
from .pictures import Picture

IMAGES = 64  # captioned together on a GPU, scores and doubts included, before they are written
CPU_IMAGES = 16  # on a CPU, where more are no faster and a kill loses those of one batch


@dataclass
class Decoded:
    """Reads pictures; `left_out` lists those that do not decode: their name and why."""

    left_out: dict[str, str] = field(default_factory=dict)

    def batches(
        self, pictures: Sequence[Picture]
    ) -> Iterator[tuple[list[Picture], list[Image], int]]:
        """Pictures that decode, their images, and how many pictures the batch has used up."""
        size = IMAGES if device().type == "cuda" else CPU_IMAGES
        for batch in batches(ahead(_decode, pictures), _bytes, DECODED, size):
            good = [(picture, image) for picture, image in batch if not isinstance(image, str)]
            self.left_out |= {p.name: why for p, why in batch if isinstance(why, str)}
            yield [picture for picture, _ in good], [image for _, image in good], len(batch)


def _decode(picture: Picture) -> tuple[Picture, Image | str]:
    try:
        return picture, picture.load()
    except ImageError as error:
        return picture, str(error)


def _bytes(row: tuple[Picture, Image | str]) -> int:
    return 0 if isinstance(row[1], str) else 3 * row[1].width * row[1].height
