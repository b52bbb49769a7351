"""Image sources to rows: what is found, skipped, decoded, and that nothing but pixels gets in."""

import copy
import json
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from vizer_rl import data
from vizer_rl.data import ImageError, ImageFolder, rows

PHOTOS = Path(__file__).parents[2] / "shared/fixtures/photos"


def save(path, color=(255, 0, 0), mode="RGB", size=(4, 4), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)
    return path


def first_pixel(path):
    images = ImageFolder.index(path)
    image = images.load(path.name)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def png_with_size(path, width, height):
    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body)
    return path


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def noise(path, size=(64, 64)):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def three(tmp_path):
    for name, color in [("a.png", (1, 0, 0)), ("b.png", (2, 0, 0)), ("c.png", (3, 0, 0))]:
        save(tmp_path / name, color)
    return tmp_path


# Decoding: one hand-known pixel per case.


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
    rgb = data.to_rgb(image)
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


def test_text_stored_in_a_file_does_not_travel_with_the_image(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("Description", "a label")
    save(tmp_path / "x.png", pnginfo=text)
    exif = Image.Exif()
    exif[0x010E] = "a label"
    save(tmp_path / "x.jpg", exif=exif, comment="a label")
    images = ImageFolder.index(tmp_path)
    for row in rows(images, "Describe"):
        assert set(row) == {"image_id", "image", "prompt"}
        assert row["image"].info == {}
        assert not row["image"].getexif()
        assert b"label" not in pickle.dumps(row["image"])


# What is skipped, and why.


def test_unusable_files_are_skipped_each_with_its_reason(tmp_path, recwarn):
    save(tmp_path / "good.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("hello, this is not an image\n" * 20)
    truncate(noise(tmp_path / "truncated.jpg"))
    truncate(noise(tmp_path / "truncated.png"))
    save(tmp_path / "thin.png", size=(1, 50))
    png_with_size(tmp_path / "bomb.png", 60_000, 60_000)
    png_with_size(tmp_path / "warned.png", 10_000, 10_000)  # Pillow warns here, and raises above
    (tmp_path / "broken.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")  # to open it would wait for ever
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n")
    (tmp_path / "notes.txt").write_text("not an image at all")
    images = ImageFolder.index(tmp_path)
    assert len(recwarn) == 0
    assert images.ids == ["good.png"]
    reasons = {Path(path).name: reason for path, reason in images.skipped.items()}
    assert reasons.pop("pipe.png") == "empty file (0 bytes)"
    assert reasons.pop("empty.png") == "empty file (0 bytes)"
    assert reasons.pop("text.jpg") == "not an image that Pillow can read"
    assert "truncated" in reasons.pop("truncated.jpg")
    assert reasons.pop("truncated.png").startswith("cannot be read")
    assert reasons.pop("thin.png") == "less than 2 pixels a side (1 x 50)"
    assert "exceeds limit" in reasons.pop("bomb.png")
    assert "exceeds limit" in reasons.pop("warned.png")
    assert reasons.pop("broken.png") == "cannot be read: No such file or directory"
    assert reasons == {}


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
    assert list(skipped.values()) == ["more than 178956970 pixels (60000 x 60000)"]


def test_skipped_files_are_written_as_json_lines(tmp_path):
    save(tmp_path / "in/good.png")
    (tmp_path / "in/é.png").touch()
    ImageFolder.index(tmp_path / "in").write_skipped(tmp_path / "skipped.jsonl")
    (line,) = (tmp_path / "skipped.jsonl").read_text().splitlines()
    expected = {"path": str(tmp_path / "in/é.png"), "reason": "empty file (0 bytes)"}
    assert json.loads(line) == expected


def test_a_file_name_that_is_not_utf8_is_skipped(tmp_path):
    save(tmp_path / "good.png")
    os.rename(save(tmp_path / "x.png"), os.fsencode(tmp_path) + b"/\xff.png")
    images = ImageFolder.index(tmp_path)
    assert images.ids == ["good.png"]
    images.write_skipped(tmp_path / "skipped.jsonl")
    assert "surrogates" in (tmp_path / "skipped.jsonl").read_text()


def test_no_usable_image_says_where_how_many_and_why(tmp_path):
    with pytest.raises(
        ImageError, match="0 image files found, 0 skipped, mostly because: no image"
    ):
        ImageFolder.index(tmp_path)
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    (tmp_path / "c.png").write_text("text")
    with pytest.raises(
        ImageError, match=r"3 image files found, 3 skipped, mostly .* empty"
    ) as error:
        ImageFolder.index(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_missing_folder_names_the_nearest_one(tmp_path):
    (tmp_path / "photos").mkdir()
    for missing in ("photoz", "photoz/deeper/still", "photoz/*.jpg"):
        with pytest.raises(ImageError, match=r"nearest name in .*: photos"):
            ImageFolder.index(tmp_path / missing)
    with pytest.raises(ImageError, match="none alike"):
        ImageFolder.index(tmp_path / "qqqqqqqq")


# What is found.


def test_folders_are_searched_in_depth_sorted_and_without_hidden_ones(tmp_path):
    for name in ("b.PNG", "a/z.jpg", "a/b/y.webp", ".hidden.png", ".git/x.png", "a/.cache/x.png"):
        save(tmp_path / name)
    images = ImageFolder.index(tmp_path)
    assert images.ids == ["a/b/y.webp", "a/z.jpg", "b.PNG"]
    assert images.paths == [tmp_path / image_id for image_id in images.ids]
    assert images.skipped == {}


def test_links_are_followed_once_and_loops_end(tmp_path):
    save(tmp_path / "elsewhere/x.png")
    save(tmp_path / "in/a/y.png")
    (tmp_path / "in/a/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    assert ImageFolder.index(tmp_path / "in").ids == ["a/y.png", "linked/x.png"]
    assert ImageFolder.index(tmp_path / "in/**/*.png").ids == ["a/y.png"]


def test_a_glob_pattern_is_relative_to_its_fixed_part(tmp_path, monkeypatch):
    for name in ("p/1/a.jpg", "p/2/b.jpg", "p/2/c.png", "p/d.jpg", "p/.h/e.jpg"):
        save(tmp_path / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert ImageFolder.index("~/p/*/*.jpg").ids == ["1/a.jpg", "2/b.jpg"]
    assert ImageFolder.index("p/**/*.jpg").ids == ["1/a.jpg", "2/b.jpg", "d.jpg"]
    assert ImageFolder.index("p/**").ids == ["1/a.jpg", "2/b.jpg", "2/c.png", "d.jpg"]
    assert ImageFolder.index("p/[2]/**.png").ids == ["2/c.png"]
    assert ImageFolder.index("~/p").ids == ["1/a.jpg", "2/b.jpg", "2/c.png", "d.jpg"]
    with pytest.raises(ImageError, match="0 image files found"):
        ImageFolder.index("p/*.webp")


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path):
    save(tmp_path / "trip [2020]/x.png")
    assert ImageFolder.index(tmp_path / "trip [2020]").ids == ["x.png"]


def test_a_single_file_is_a_source(tmp_path):
    assert ImageFolder.index(save(tmp_path / "x.png")).ids == ["x.png"]


def test_limit_is_a_seeded_and_stable_subset(tmp_path):
    for i in range(20):
        save(tmp_path / f"{i:02}.png")
    everything = ImageFolder.index(tmp_path).ids
    five = ImageFolder.index(tmp_path, limit=5, seed=1).ids
    assert five == sorted(five)
    assert len(set(five)) == 5
    assert set(five) < set(everything)
    assert five == ImageFolder.index(tmp_path, limit=5, seed=1).ids
    assert five != ImageFolder.index(tmp_path, limit=5, seed=2).ids
    assert ImageFolder.index(tmp_path, limit=99).ids == everything
    with pytest.raises(ImageError, match="at least 1, got 0"):
        ImageFolder.index(tmp_path, limit=0)


def test_load_names_the_file_and_the_reason(three):
    images = ImageFolder.index(three)
    (three / "b.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"Cannot use image '.*b\.png': empty file"):
        images.load("b.png")
    with pytest.raises(
        ImageError, match=r"Cannot use image '.*q\.png': cannot be read: No such file"
    ):
        images.load("q.png")


# Rows.


def test_a_large_source_is_indexed_by_header_and_decoded_when_read(three, monkeypatch):
    decoded = []
    to_rgb = data.to_rgb
    monkeypatch.setattr(
        data, "to_rgb", lambda image: decoded.append(image.filename) or to_rgb(image)
    )
    monkeypatch.setattr(data, "DECODE_AT_INDEX", 2)
    dataset = rows(ImageFolder.index(three), "Describe")
    assert decoded == []
    assert dataset[1]["image"].getpixel((0, 0)) == (2, 0, 0)
    assert [Path(name).name for name in decoded] == ["b.png"]
    dataset[[1, 1, 1]]
    assert len(decoded) == 1  # TRL asks for the same image G times


def test_rows_can_be_read_in_every_way_trl_reads_them(three):
    dataset = rows(ImageFolder.index(three), "Describe")
    assert len(dataset) == 3
    first = next(iter(dataset))
    assert (first["image_id"], first["prompt"], first["image"].size) == (
        "a.png",
        "Describe",
        (4, 4),
    )
    assert dataset[2]["image_id"] == "c.png"
    batch = dataset[[0, 0, 1]]
    assert batch["image_id"] == ["a.png", "a.png", "b.png"]
    assert [image.getpixel((0, 0))[0] for image in batch["image"]] == [1, 1, 2]
    assert dataset[[]] == {"image_id": [], "image": [], "prompt": []}
    assert dataset.shuffle(seed=0).select([0])[0]["image"].mode == "RGB"


def test_every_prompt_is_a_copy_of_its_own(three):
    prompt = [{"role": "user", "content": "Describe"}]
    dataset = rows(ImageFolder.index(three), prompt)
    batch = dataset[[0, 0]]
    batch["prompt"][0][0]["content"] = "changed"
    assert batch["prompt"][1] == dataset[0]["prompt"] == prompt
    assert prompt == [{"role": "user", "content": "Describe"}]


def test_an_image_that_breaks_after_indexing_is_replaced_by_the_next(three):
    images = ImageFolder.index(three)
    dataset = rows(images, "Describe")
    (three / "b.png").write_bytes(b"broken")
    (three / "c.png").write_bytes(b"")
    for _ in range(2):
        row = copy.deepcopy(dataset)[1]  # as many methods of a Dataset do
        assert row["image_id"] == "a.png"  # c is broken too: wraps
        assert row["image"].getpixel((0, 0)) == (1, 0, 0)
    assert sorted(Path(path).name for path in images.skipped) == ["b.png", "c.png"]
    assert len(dataset) == 3


def test_rows_say_so_when_no_image_is_left(three):
    dataset = rows(ImageFolder.index(three), "Describe")
    for path in three.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ImageError, match="Not one image of"):
        dataset[0]


def test_rows_reach_data_loader_workers(three):
    dataset = rows(ImageFolder.index(three), "Describe")
    before = dataset[0]  # a filled cache is no hindrance
    arrived = pickle.loads(pickle.dumps(dataset))
    assert arrived[0]["image"].tobytes() == before["image"].tobytes()
    assert arrived[0]["image"] is not before["image"]


def test_few_decoded_images_are_kept(tmp_path, monkeypatch):
    for i in range(3):
        save(tmp_path / f"{i}.png")
    monkeypatch.setattr(data, "CACHED_IMAGES", 2)
    dataset = rows(ImageFolder.index(tmp_path), "Describe")
    first = dataset[0]["image"]
    assert dataset[0]["image"] is first
    dataset[[1, 2]]
    assert dataset[0]["image"] is not first


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


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photos at {PHOTOS}")
def test_all_fixture_photos_load():
    images = ImageFolder.index(PHOTOS)
    assert len(images.ids) == 76
    assert images.skipped == {}
    assert rows(images, "Describe")[75]["image"].mode == "RGB"
