"""Decoding of image files: modes, orientation, frames, and what is refused."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vizer_rl.data import decode
from vizer_rl.data.sources import ImageFolder

from ..pictures import first_pixel, noise, png_with_size, save, truncate


@pytest.mark.parametrize(
    ("mode", "color", "suffix", "options", "expected"),
    [
        ("RGB", (10, 20, 30), "png", {}, (10, 20, 30)),
        ("L", 77, "png", {}, (77, 77, 77)),
        ("1", 1, "png", {}, (255, 255, 255)),
        ("1", 0, "png", {}, (0, 0, 0)),
        ("RGBA", (255, 0, 0, 0), "png", {}, (255, 255, 255)),
        ("RGBA", (255, 0, 0, 51), "png", {}, (255, 204, 204)),  # a fifth red, the rest white
        ("RGBA", (255, 0, 0, 255), "png", {}, (255, 0, 0)),
        ("LA", (0, 0), "png", {}, (255, 255, 255)),
        ("LA", (100, 255), "png", {}, (100, 100, 100)),
        ("RGB", (1, 2, 3), "png", {"transparency": (1, 2, 3)}, (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), "tiff", {}, (255, 0, 0)),
        ("CMYK", (0, 0, 0, 255), "jpg", {}, (0, 0, 0)),
        ("I;16", 257 * 100, "png", {}, (100, 100, 100)),
        ("I;16", 65535, "tiff", {}, (255, 255, 255)),
        ("I;16B", 257 * 7, "tiff", {}, (7, 7, 7)),
        ("I", 200, "tiff", {}, (200, 200, 200)),
        ("F", 12.6, "tiff", {}, (13, 13, 13)),
        ("RGBA", (0, 0, 255, 0), "webp", {"lossless": True}, (255, 255, 255)),
    ],
)
def test_a_mode_decodes_to_the_known_pixel(tmp_path, mode, color, suffix, options, expected):
    assert first_pixel(save(tmp_path / f"x.{suffix}", color, mode, **options)) == expected


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_beyond_a_byte_are_stretched_from_minimum_to_maximum(tmp_path, dtype):
    values = np.array([[-1000, 0], [0, 1000]], dtype=dtype)
    Image.fromarray(values).save(tmp_path / "x.tiff")
    image = ImageFolder.index(tmp_path).load("x.tiff")
    assert [image.getpixel((x, x))[0] for x in (0, 1)] == [0, 255]
    assert image.getpixel((1, 0))[0] in (127, 128)


def test_float_pixels_that_are_not_finite_do_not_spoil_the_rest(tmp_path):
    values = np.array([[np.nan, np.inf], [20, 40]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "x.tiff")
    image = ImageFolder.index(tmp_path).load("x.tiff")
    assert [p[0] for p in np.asarray(image).reshape(-1, 3)] == [0, 255, 20, 40]


def test_a_palette_decodes_to_its_colours_and_white_where_transparent(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=0)
    image.save(tmp_path / "half.png", transparency=bytes([0, 255]))
    images = ImageFolder.index(tmp_path)
    assert images.load("plain.png").getpixel((0, 0)) == (10, 20, 30)
    for name in ("clear.png", "half.png"):
        assert images.load(name).getpixel((0, 0)) == (255, 255, 255)
        assert images.load(name).getpixel((1, 0)) == (40, 50, 60)


def test_a_palette_with_an_alpha_band_is_put_on_white():
    image = Image.new("PA", (2, 2))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((0, 0), (1, 255))
    image.putpixel((1, 0), (1, 0))
    rgb = decode.to_rgb(image)
    assert [rgb.getpixel((x, 0)) for x in (0, 1)] == [(40, 50, 60), (255, 255, 255)]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_the_first_of_many_frames_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if suffix == "webp" else {}
    path = tmp_path / f"x.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as image:
        assert image.n_frames == 3
    assert first_pixel(path) == (255, 0, 0)


@pytest.mark.parametrize(
    ("orientation", "corner"),  # where the one white pixel of the stored top-left must appear
    [(1, (0, 0)), (2, (5, 0)), (3, (5, 3)), (4, (0, 3)), (5, (0, 0)), (6, (3, 0)), (8, (0, 5))],
)
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_exif_orientation_is_applied(tmp_path, orientation, corner, suffix):
    image = Image.new("L", (6, 4), 0).convert("RGB")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    image.save(tmp_path / f"x.{suffix}", exif=exif, **options)
    upright = ImageFolder.index(tmp_path).load(f"x.{suffix}")
    assert upright.size == ((4, 6) if orientation > 4 else (6, 4))
    assert upright.getpixel(corner) == (255, 255, 255)
    assert np.asarray(upright)[..., 0].sum() == 255


def test_an_odd_exif_tag_does_not_cost_the_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x0100] = 6, 4  # orientation, and a width
    raw = save(tmp_path / "x.jpg", size=(6, 4), exif=exif).read_bytes()
    number, text = struct.pack(">HH", 0x0100, 4), struct.pack(">HH", 0x0100, 2)
    assert raw.count(number) == 1
    (tmp_path / "x.jpg").write_bytes(raw.replace(number, text))  # now a width in letters
    assert ImageFolder.index(tmp_path).load("x.jpg").size == (4, 6)


def test_a_postscript_file_under_another_name_is_never_run(tmp_path):
    save(tmp_path / "good.png")
    (tmp_path / "x.jpg").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    )
    assert list(ImageFolder.index(tmp_path).skipped.values()) == [
        "not an image that Pillow can read"
    ]


def test_the_pixel_limit_holds_where_pillows_is_switched_off(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    save(tmp_path / "good.png")
    png_with_size(tmp_path / "bomb.png", 60_000, 60_000)
    skipped = ImageFolder.index(tmp_path).skipped
    assert list(skipped.values()) == ["more than 89478485 pixels (60000 x 60000)"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to count open files")
def test_no_file_stays_open(tmp_path):
    save(tmp_path / "x.png")
    noise(tmp_path / "x.jpg")
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for suffix in ("gif", "tiff", "webp"):
        frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:])
    truncate(noise(tmp_path / "y.jpg"))
    (tmp_path / "z.jpg").write_text("text")
    images = ImageFolder.index(tmp_path)
    decoded = [images.load(image_id) for image_id in images.ids]
    links = [os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    assert len(decoded) == 5
    assert not [link for link in links if str(tmp_path) in link]
