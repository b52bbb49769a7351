"""Archives: images of zip and tar files read in place, and what is refused, each in a sentence."""

import io
import pickle
import tarfile
import zipfile
from multiprocessing import get_context

import pytest
from PIL import Image

from vizer_rl.data import archives, stores
from vizer_rl.data.open_source import check_source
from vizer_rl.data.sources import ImageFolder, open_images, reopen_images
from vizer_rl.errors import ImageError


def png(color=(255, 0, 0), size=(6, 6)):
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def tar(path, members, **fields):
    """A tar of {name: content}; fields are set on every member."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    return path


def zipped(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


MEMBERS = {"b/2.png": png((0, 255, 0)), "a.png": png(), "a.txt": b"a label", "a.json": b"{}"}


@pytest.mark.parametrize("make", [tar, zipped])
def test_images_are_read_in_place_and_what_is_beside_them_is_named(make, tmp_path):
    path = make(tmp_path / ("x.tar" if make is tar else "x.zip"), MEMBERS)
    images = ImageFolder.index(path)
    assert images.ids == [f"{path.name}/a.png", f"{path.name}/b/2.png"]
    assert [images.load(i).getpixel((0, 0)) for i in images.ids] == [(255, 0, 0), (0, 255, 0)]
    assert images.sizes() == [(6, 6), (6, 6)]
    assert images.dropped == {".txt": 1, ".json": 1}
    assert images.file(images.ids[0]) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]  # nothing was unpacked
    again = reopen_images(images.address, images.ids[1:])
    assert again.load(again.ids[0]).getpixel((0, 0)) == (0, 255, 0)
    assert len({images.identity(i) for i in images.ids}) == 2


@pytest.mark.parametrize("make", [tar, zipped])
def test_archives_reach_other_processes(make, tmp_path):
    images = ImageFolder.index(make(tmp_path / ("x.tar" if make is tar else "x.zip"), MEMBERS))
    images.load(images.ids[0])  # an open file is no hindrance
    copy = pickle.loads(pickle.dumps(images))
    assert copy.load(copy.ids[1]).getpixel((0, 0)) == (0, 255, 0)
    with get_context("fork").Pool(2) as pool:
        pixels = pool.map(first_pixel, [(images, i) for i in images.ids * 4])
    assert pixels == [(255, 0, 0), (0, 255, 0)] * 4


def first_pixel(pair):
    images, image_id = pair
    return images.load(image_id).getpixel((0, 0))


def test_numbered_shards_are_one_source(tmp_path):
    for n in range(12):
        tar(tmp_path / f"s/{n:03}.tar", {"x.png": png((n, 0, 0)), "x.cls": b"7"})
    images = ImageFolder.index(tmp_path / "s/{000..011}.tar")
    assert images.ids == [f"{n:03}.tar/x.png" for n in range(12)]
    assert [images.load(i).getpixel((0, 0))[0] for i in images.ids] == list(range(12))
    assert images.dropped == {".cls": 12}
    assert open_images(tmp_path / "s/*.tar").ids == images.ids
    assert open_images(tmp_path / "s/{003,001}.tar").ids == ["001.tar/x.png", "003.tar/x.png"]
    with pytest.raises(ImageError, match=r"'.*s/012.tar' not found; 2 of 14 shards are missing\.$"):
        open_images(tmp_path / "s/{000..013}.tar")
    assert "shards are missing" in check_source(f"{tmp_path}/s/{{000..013}}.tar")
    assert check_source(f"{tmp_path}/s/{{000..011}}.tar") == ""
    assert "its .tar files are read as" in check_source(tmp_path / "s")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("/etc/x.png", "an absolute path"),
        ("C:\\x.png", "an absolute path"),
        ("a/../../x.png", "a path with '..'"),
        ("..\\x.png", "a path with '..'"),
        ("../notes.txt", "a path with '..'"),
    ],
)
@pytest.mark.parametrize("make", [tar, zipped])
def test_paths_that_lead_out_are_refused(make, name, what, tmp_path):
    path = make(tmp_path / ("x.tar" if make is tar else "x.zip"), {"a.png": png(), name: png()})
    with pytest.raises(ImageError, match="archives that hold such a member are refused") as error:
        open_images(path)
    assert f"{name!r}, {what}: " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_and_devices_in_a_tar_are_refused(kind, tmp_path):
    path = tar(tmp_path / "x.tar", {"a.png": b""}, type=kind, linkname="/etc/passwd")
    with pytest.raises(ImageError, match=r"'a.png', a link: "):
        open_images(path)
    path = tar(tmp_path / "y.tar", {"a.png": b""}, type=tarfile.CHRTYPE)
    with pytest.raises(ImageError, match=r"'a.png', no plain file: "):
        open_images(path)


def test_links_and_secrets_in_a_zip_are_refused(tmp_path):
    link = zipfile.ZipInfo("a.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ImageError, match=r"'a.png', a link: "):
        open_images(tmp_path / "x.zip")
    content = bytearray(zipped(tmp_path / "y.zip", {"a.png": png()}).read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # the flag of encryption
    (tmp_path / "y.zip").write_bytes(content)
    with pytest.raises(ImageError, match=r"'a.png', encrypted: "):
        open_images(tmp_path / "y.zip")


def test_archives_without_an_image_or_damaged_are_one_sentence(tmp_path):
    for name, members in (("empty", {}), ("texts", {"a.txt": b"x"})):
        with pytest.raises(ImageError, match="holds no image"):
            open_images(zipped(tmp_path / f"{name}.zip", members))
    with pytest.raises(ImageError, match="holds no image"):
        open_images(tar(tmp_path / "texts.tar", {"a.txt": b"x"}))
    for suffix in ("zip", "tar"):
        (tmp_path / f"none.{suffix}").write_bytes(b"no archive" * 100)
        with pytest.raises(ImageError, match=f"is damaged, or no .{suffix}"):
            open_images(tmp_path / f"none.{suffix}")
    (tmp_path / "x.tar.gz").write_bytes(b"")
    with pytest.raises(ImageError, match=r"is a compressed tar, .* allowed: zip"):
        open_images(tmp_path / "x.tar.gz")


def test_a_tar_that_is_damaged_within_or_cut_off_is_refused(tmp_path):
    content = tar(tmp_path / "x.tar", {f"{n}.png": png() for n in range(4)}).read_bytes()
    (tmp_path / "x.tar").write_bytes(content[:2048] + b"z" * 512 + content[2560:])
    with pytest.raises(ImageError, match=r"is damaged: byte 2048 begins no member\.$"):
        open_images(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(content[: 3 * 1024 + 530])  # in the last image
    with pytest.raises(ImageError, match="is damaged"):
        open_images(tmp_path / "x.tar")


def test_bad_members_are_skipped_each_with_its_reason(tmp_path, monkeypatch):
    members = {
        "a.png": png(),
        "\udcff.png": png(),
        "empty.png": b"",
        "text.jpg": b"hello" * 9,
        "large.png": png() * 99,
    }
    monkeypatch.setattr(archives, "check_bytes", lambda n: "too large" if n > 1000 else "")
    images = ImageFolder.index(tar(tmp_path / "x.tar", members))
    assert images.ids == ["x.tar/a.png"]
    assert {place.split("x.tar/")[1]: why for place, why in images.skipped.items()} == {
        "\udcff.png": "its name is not UTF-8",
        "empty.png": "empty file (0 bytes)",
        "text.jpg": "not an image that Pillow can read",
        "large.png": "too large",
    }
    assert stores.check_bytes(2**40) == "more than 256 MiB"


def test_a_zip_whose_member_unpacks_to_another_size_is_skipped(tmp_path):
    path = zipped(tmp_path / "x.zip", {"a.png": png(), "b.png": png() + b"\0" * 100_000})
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\1\2")
    content[entry + 24 : entry + 28] = (50).to_bytes(4, "little")  # its size, as it says
    path.write_bytes(content)
    images = ImageFolder.index(path)
    assert images.ids == ["x.zip/a.png"]
    assert "cannot be read" in next(iter(images.skipped.values()))


def test_of_two_members_of_one_name_the_last_counts(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for color in ((1, 0, 0), (2, 0, 0)):
            info = tarfile.TarInfo("a.png")
            info.size = len(png(color))
            archive.addfile(info, io.BytesIO(png(color)))
    images = open_images(tmp_path / "x.tar")
    assert images.ids == ["x.tar/a.png"]
    assert images.load("x.tar/a.png").getpixel((0, 0)) == (2, 0, 0)


def test_an_archive_that_is_replaced_loses_its_images(tmp_path):
    path = tar(tmp_path / "x.tar", MEMBERS)
    images = ImageFolder.index(path)
    tar(path, {**MEMBERS, "c.png": png()})
    assert images.lost("x.tar/a.png")
    with pytest.raises(ImageError, match="was replaced after it was indexed"):
        images.load("x.tar/a.png")
    path.unlink()
    with pytest.raises(ImageError, match=r"Cannot use image '.*x.tar/a.png'"):
        images.load("x.tar/a.png")
