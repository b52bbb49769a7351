"""Image decoding: any file Pillow reads to upright 8-bit RGB, or ImageError with the reason."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import ImageError

MAX_PIXELS = 89_478_485  # where Pillow warns; holds even where its own limit was raised or off
MAX_ASPECT = 200  # longer images are refused: Qwen2-VL's processor raises on them
NOT_RASTER = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"}  # EPS runs programs
SUFFIXES = {end for end, name in Image.registered_extensions().items() if name not in NOT_RASTER}
KEPT_SIDES = 1536, 1024  # pixels, long and short: a policy's tiles and tokens, a scorer's crops
Data = Path | bytes  # a file, or what is in one
FORMATS = tuple(name for name in Image.ID if name not in NOT_RASTER)


def decode(data: Data) -> Image.Image:
    """Decode the first frame of a file, or of its bytes, to RGB, 8 bits a channel; ImageError.

    A JPEG is decoded at a half, a quarter or an eighth of its sides where that leaves KEPT_SIDES:
    everywhere alike, so that an image has the same pixels for policy, scorers and caches.
    """
    with _open_image(data) as image:
        return to_rgb(image)


def image_size(data: Data) -> tuple[int, int]:
    """Width and height by the header, as stored (EXIF may turn them); ImageError(reason)."""
    with _open_image(data) as image:
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


def read_bytes(data: Data) -> bytes:
    """The bytes of a file that can be an image's; ImageError(reason)."""
    if isinstance(data, bytes):
        return data
    with _reasons():
        _check_file(data)
        return data.read_bytes()


def small_rgb(data: Data, sides: tuple[int, int]) -> Image.Image:
    """The image as RGB, a JPEG as small as its format gives it above these sides; ImageError."""
    with _open_image(data, sides) as image:
        return to_rgb(image)


def decode_error(data: Data, full_decode: bool) -> str | None:
    """Why an image cannot be used, by its header or a full decode; None where it can."""
    try:
        with _open_image(data) as image:
            if full_decode:
                to_rgb(image)
    except ImageError as error:
        return str(error)
    return None


def _check_file(path: Path) -> None:
    str(path).encode()  # a name that is not UTF-8 cannot become an Arrow string
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device never ends
        raise ImageError("not a plain file")
    if status.st_size == 0:
        raise ImageError("empty file (0 bytes)")


@contextmanager
def _reasons() -> Iterator[None]:
    """Inside, whatever goes wrong becomes ImageError("reason (details)")."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not an image that Pillow can read") from error
    except Exception as error:  # on corrupt bytes Pillow's readers raise almost anything
        detail = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"cannot be read: {detail}") from error


@contextmanager
def _open_image(data: Data, sides: tuple[int, int] = KEPT_SIDES) -> Iterator[Image.Image]:
    """An open image, a JPEG drafted to no less than these sides, long and short."""
    with _reasons():
        if isinstance(data, Path):
            _check_file(data)
        elif not data:
            raise ImageError("empty file (0 bytes)")
        file = data if isinstance(data, Path) else BytesIO(data)
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"more than {MAX_PIXELS} pixels ({image.width} x {image.height})")
            if min(image.size) < 2:
                raise ImageError(f"less than 2 pixels a side ({image.width} x {image.height})")
            if max(image.size) > MAX_ASPECT * min(image.size):
                raise ImageError(f"longer than 1:{MAX_ASPECT} ({image.width} x {image.height})")
            image.draft(None, sides if image.width >= image.height else sides[::-1])  # type: ignore[arg-type]
            yield image
