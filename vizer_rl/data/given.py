"""Images as a caller gives them: files, or images of Pillow that are open already."""

from __future__ import annotations

from pathlib import Path

from PIL.Image import Image

from ..errors import ImageError, UserError, path_not_found
from .decode import decode, to_rgb


def as_image(image: str | Path | Image) -> Image:
    """RGB, 8 bits a channel, upright; UserError where it cannot be used."""
    if isinstance(image, Image):
        return to_rgb(image.copy())
    path = Path(image).expanduser()
    if not path.is_file():
        raise UserError(f"image {path_not_found(path)}")
    try:
        return decode(path)
    except ImageError as error:
        raise UserError(f"image '{path}': {error}") from error
