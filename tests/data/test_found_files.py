"""Lists of paths, numbered shards and several sources with weights."""

import json

import pytest

from vizer_rl.data import found_files, open_source
from vizer_rl.data.found_files import expand_braces, find_files, walk
from vizer_rl.data.sources import ImageFolder, open_images, reopen_images
from vizer_rl.errors import ImageError

from ..pictures import save
from .test_archives import png, tar


def test_a_text_file_names_images_by_line(tmp_path):
    for name in ("a/x.png", "b/y.png", "b/z.png"):
        save(tmp_path / name)
    listed = tmp_path / "lists/some.txt"
    listed.parent.mkdir()
    listed.write_text(f"# mine\n../a/x.png\n\n{tmp_path}/b/y.png\n../a/x.png\n")
    images = ImageFolder.index(listed)
    assert images.ids == ["a/x.png", "b/y.png"]
    assert images.root == tmp_path
    assert images.file("a/x.png") == tmp_path / "a/x.png"
    assert reopen_images(images.address, ["a/x.png"]).load("a/x.png").size == (4, 4)


def test_a_list_with_a_missing_path_or_without_any_is_one_sentence(tmp_path):
    save(tmp_path / "x.png")
    (tmp_path / "list.txt").write_text("x.png\ny.png\n")
    with pytest.raises(ImageError, match=r"list.txt', line 2: '.*y.png' not found; nearest: .*x"):
        open_images(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("\n# nothing\n")
    with pytest.raises(ImageError, match="names no image"):
        open_images(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ImageError, match="it is not text in UTF-8"):
        open_images(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("x.tar", ["x.tar"]),
        ("{8..11}.tar", ["8.tar", "9.tar", "10.tar", "11.tar"]),
        ("{08..10}.tar", ["08.tar", "09.tar", "10.tar"]),
        ("{2..1}.tar", ["2.tar", "1.tar"]),
        ("{a,b}-{0..1}.tar", ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
        ("{a}.tar", ["{a}.tar"]),
    ],
)
def test_braces_stand_for_what_they_do_in_a_shell(pattern, texts):
    assert expand_braces(pattern) == texts


def test_too_many_shards_are_refused_before_they_are_listed():
    with pytest.raises(ImageError, match="stands for over 1000000 files"):
        expand_braces("{0..999999999999}.tar")


def test_names_below_a_folder_are_the_same_from_wherever_it_is_named(tmp_path, monkeypatch):
    for name in ("b.png", "a/c.png", ".x/d.png", "a/.e.png"):
        save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path, found_files.Path(), found_files.Path("../" + tmp_path.name)):
        assert walk(root) == ["a/c.png", "b.png"]
        assert find_files(root)[1] == [root / "a/c.png", root / "b.png"]


def test_several_sources_are_thinned_to_their_weights(tmp_path):
    for n in range(40):
        save(tmp_path / f"in/{n:02}.png", (n, 0, 0))
    path = tar(tmp_path / "x.tar", {f"{n:02}.png": png((0, n, 0)) for n in range(20)})
    sources = {str(tmp_path / "in"): 3, str(path): 1}
    facts = tmp_path / "cache/x.npy"
    images = ImageFolder.index(sources, decoded=facts)
    parts = [image_id.partition("/")[0] for image_id in images.ids]
    assert (parts.count("1"), parts.count("2")) == (40, 13)  # 40 / 3
    assert images.ids[0] == "1/00.png"
    assert images.load("1/05.png").getpixel((0, 0)) == (5, 0, 0)
    member = images.ids[-1]
    assert member.startswith("2/x.tar/")
    assert images.load(member).getpixel((0, 0))[0] == 0
    assert images.file("1/05.png") == tmp_path / "in/05.png"
    assert images.file(member) is None
    assert ImageFolder.index(sources, decoded=facts).ids == images.ids
    assert json.loads(images.address) == {str(tmp_path / "in"): 3, str(path): 1}
    assert reopen_images(images.address, [member]).load(member).size == (6, 6)
    even = ImageFolder.index(dict.fromkeys(sources, 0.5), decoded=facts)
    assert sorted({i[0]: 0 for i in even.ids}) == ["1", "2"]
    assert len(even.ids) == 40  # 20 of each
    (tmp_path / "in/05.png").write_bytes(b"")
    assert images.changed("1/05.png")
    assert not images.changed("1/06.png")


def test_a_source_without_a_usable_image_does_not_silently_take_all_others_along(tmp_path):
    save(tmp_path / "in/a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/b.png").touch()
    with pytest.raises(ImageError, match=r"No usable image in '.*/empty', one of several sources"):
        ImageFolder.index(
            {str(tmp_path / "in"): 1, str(tmp_path / "empty"): 1}, decoded=tmp_path / "x.npy"
        )


def test_a_folder_is_checked_by_its_first_image(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    assert "holds no file with the suffix" in open_source.check_source(tmp_path / "in")
    save(tmp_path / "in/deep/a.png")
    monkeypatch.setattr(open_source, "find_files", None)  # which lists them all
    assert open_source.check_source(tmp_path / "in") == ""
