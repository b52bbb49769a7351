"""Image decoding: any file Pillow reads to upright 8-bit RGB, or ImageError with the reason."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import ImageError

MAX_PIXELS = 89_478_485  # where Pillow warns; holds even where its own limit was raised or off
MAX_ASPECT = 200  # longer images are refused: Qwen2-VL's processor raises on them
NOT_RASTER = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"}  # EPS runs programs
SUFFIXES = {end for end, name in Image.registered_extensions().items() if name not in NOT_RASTER}
KEPT_SIDES = 1536, 1024  # pixels, long and short: a policy's tiles and tokens, a scorer's crops
FORMATS = tuple(name for name in Image.ID if name not in NOT_RASTER)


def decode(path: Path) -> Image.Image:
    """Decode the first frame of a file to RGB, 8 bits a channel, or raise ImageError(reason).

    A JPEG is decoded at a half, a quarter or an eighth of its sides where that leaves KEPT_SIDES:
    everywhere alike, so that an image has the same pixels for policy, scorers and caches.
    """
    with _open_image(path) as image:
        return to_rgb(image)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height by the header, as stored (EXIF may turn them); ImageError(reason)."""
    with _open_image(path) as image:
        return image.size


def to_rgb(image: Image.Image) -> Image.Image:
    """An open image of any Pillow mode -> new RGB: upright, on white, without metadata."""
    image.getexif()  # stays cached; without the raw copy no odd tag has to be written back
    image.info.pop("exif", None)
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.uint32)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_to_8_bit(np.asarray(image, dtype=np.float64)))
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    rgb = image.convert("RGB")
    rgb.info = {}  # EXIF descriptions, PNG texts and JPEG comments may hold a caption
    return rgb


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Values (H, W) -> uint8 (H, W): as they are within 0..255, else min..max to 0..255."""
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    if low < 0 or high > 255:
        values = (values - low) * (255 / ((high - low) or 1))
    return np.asarray(np.nan_to_num(values).clip(0, 255).round(), dtype=np.uint8)


@contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    """An open image; whatever goes wrong within becomes ImageError("reason (details)")."""
    try:
        str(path).encode()  # a name that is not UTF-8 cannot become an Arrow string
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device never ends
            raise ImageError("not a plain file")
        if status.st_size == 0:
            raise ImageError("empty file (0 bytes)")
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"more than {MAX_PIXELS} pixels ({image.width} x {image.height})")
            if min(image.size) < 2:
                raise ImageError(f"less than 2 pixels a side ({image.width} x {image.height})")
            if max(image.size) > MAX_ASPECT * min(image.size):
                raise ImageError(f"longer than 1:{MAX_ASPECT} ({image.width} x {image.height})")
            image.draft(None, KEPT_SIDES if image.width >= image.height else KEPT_SIDES[::-1])  # type: ignore[arg-type]
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not an image that Pillow can read") from error
    except Exception as error:  # on corrupt bytes Pillow's readers raise almost anything
        detail = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"cannot be read: {detail}") from error


def decode_error(path: Path, full_decode: bool) -> str | None:
    """Why a file cannot be used, by its header or a full decode; None where it can."""
    try:
        with _open_image(path) as image:
            if full_decode:
                to_rgb(image)
    except ImageError as error:
        return str(error)
    return None
