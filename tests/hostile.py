"""Corpora: over 200 bad and odd image files, made where it is asked for, and odd captions."""

import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from .pictures import png_with_size

FORMATS = ("jpg", "png", "gif", "bmp", "tiff", "webp")
NAMES = ["line\nbreak", "tab\there", "quote'\"", "$(touch x)", "`id`", "-rf", "emoji 🦊", "a" * 200]
NAMES += ["%s%n", "<b>bold", "\x1b[31mred", "spaces  two", "ünïcödé", "\u202egnp", "[x]", "a;b"]
RAN = "document.documentElement.setAttribute('data-ran', '1')"
CAPTIONS = {
    "html": f'<script>{RAN}</script><img src=x onerror="{RAN}"></span></style><svg onload={RAN}>',
    "attribute": f'" onmouseover="{RAN}" x=\' onload=\'{RAN}',
    "ansi": "\x1b[31mred\x1b[0m \x1b]0;title\x07\x1b[2J\x1b[H \x1b]8;;http://a.example\x1b\\b",
    "c1": "\x9b31m \x85 \x90q \x9d0;title\x9c",
    "control": "".join(map(chr, range(32))) + "\x7f end",
    "long": "a large solid red circle " * 4000,
    "surrogates": "lone \ud800 and \udfff",
    "markup": "[bold]x[/bold] [/] [link=https://a.example]y[/link] [red] :smile: \\[ [@click=a]",
    "newlines": "one\ntwo\r\nthree\rfour\u2028five\u2029six",
    "direction": "\u202egnp.exe\u202c \u2066left\u2069 \u200f",
    "json": '{"base": "\\"}, \\u0041 \\x1b',
    "letters": "ünïcödé 漢字 שלום 👩‍👩‍👧",
    "empty": "",
}


def pixels(width, height, seed=0):
    shape = (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, suffix, **options):
    file = io.BytesIO()
    image.save(file, {"jpg": "JPEG", "tiff": "TIFF"}.get(suffix, suffix.upper()), **options)
    return file.getvalue()


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(*chunks, size=(8, 8)):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks)


def make_corpus(folder: Path, seed: int = 0) -> int:
    """Fill a folder; the number of files, special ones and links included."""
    draw, picture = random.Random(seed), Image.fromarray(pixels(64, 48))
    folder.mkdir(parents=True, exist_ok=True)

    def put(name, data):
        (folder / name).write_bytes(data)

    for suffix in FORMATS:
        data = encoded(picture, suffix)
        for quarter in range(4):
            put(f"truncated {quarter}.{suffix}", data[: len(data) * quarter // 4])
        for k in range(12):
            flipped = bytearray(data)
            for _ in range(1 + k):
                flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            put(f"flipped {k}.{suffix}", bytes(flipped))
        for other in FORMATS:
            if other != suffix:
                put(f"{suffix} in truth.{other}", data)
        put(f"garbage.{suffix}", draw.randbytes(2000))
        put(f"text.{suffix}", b"<html><script>alert(1)</script></html>")
        put(f"svg.{suffix}", b"<svg xmlns='http://www.w3.org/2000/svg'><rect/></svg>")
        put(f"header and nothing.{suffix}", data[:24])
    odd_images(folder, put)
    for k, name in enumerate(NAMES):
        put(f"{name}.png", encoded(Image.new("RGB", (8, 8), (k, 2 * k, 3 * k)), "png"))
    (folder / os.fsdecode(b"latin \xe9\xff.png")).write_bytes(b"x")
    special_files(folder)
    return sum(len(names) for _, _, names in os.walk(folder))


def odd_images(folder, put):
    """Bombs, strips, modes, metadata."""
    bomb = zlib.compress(b"\0" * 30_000_000, 9)
    put("zip bomb.png", png(chunk(b"IDAT", bomb), chunk(b"IEND", b"")))
    put("text bomb.png", png(chunk(b"zTXt", b"k\0\0" + bomb), chunk(b"IEND", b"")))
    put("profile bomb.png", png(chunk(b"iCCP", b"k\0\0" + bomb), chunk(b"IEND", b"")))
    for width, height in [
        (60_000, 60_000),
        (2**31 - 1, 2**31 - 1),
        (0, 0),
        (0, 9),
        (30_000, 30_000),
    ]:
        png_with_size(folder / f"said to be {width} x {height}.png", width, height)
    put("decompression bomb.png", encoded(Image.new("1", (13_000, 13_000)), "png"))
    for size in [(1, 30_000), (30_000, 1), (2, 30_000), (30_000, 2), (1, 1), (2, 2)]:
        put(f"strip {size[0]} x {size[1]}.png", encoded(Image.new("RGB", size), "png"))
    put("cmyk.jpg", encoded(Image.new("CMYK", (9, 9)), "jpg"))
    put("cmyk.tiff", encoded(Image.new("CMYK", (9, 9)), "tiff"))
    put("16 bit.png", encoded(Image.new("I;16", (9, 9), 40_000), "png"))
    put("float.tiff", encoded(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "tiff"))
    palette = Image.new("P", (9, 9))
    put("palette.png", encoded(palette, "png", transparency=bytes(range(256))))
    frames = [Image.new("RGB", (9, 9), (k, 0, 0)) for k in range(300)]
    for suffix in ("gif", "webp", "png"):
        more = {"save_all": True, "append_images": frames[1:]}
        put(f"animated.{suffix}", encoded(frames[0], suffix, **more))
    loop = b"Exif\0\0II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0"
    put("exif loop.jpg", encoded(frames[0], "jpg", exif=loop))
    put("exif garbage.jpg", encoded(frames[0], "jpg", exif=b"Exif\0\0" + os.urandom(400)))
    put("profile garbage.jpg", encoded(frames[0], "jpg", icc_profile=os.urandom(4000)))
    put("profile garbage.png", encoded(frames[0], "png", icc_profile=os.urandom(4000)))
    put("comment.jpg", encoded(frames[0], "jpg", comment=b"a caption" * 5000))
    tiff = b"II*\0\x08\0\0\0\0\0\x08\0\0\0"  # its next directory is itself
    put("directory loop.tiff", tiff)


def special_files(folder):
    """What is no plain file, or leads elsewhere."""
    os.mkfifo(folder / "fifo.jpg")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "null.png").symlink_to("/dev/null")
    (folder / "random.jpg").symlink_to("/dev/urandom")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "up").symlink_to(folder)
    (folder / "folder.jpg").mkdir()
    (folder / "folder.jpg" / "inside.png").write_bytes(b"")
    os.chmod(folder / "folder.jpg", 0o755)
