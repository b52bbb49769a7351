"""The three sets of a user's own images: by content, from any source; what a run says of them."""

import io
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from vizer_rl.errors import UserError
from vizer_rl.training import splits

from ..hostile import encoded, pixels


def noise(seed):
    """A picture unlike any other: 16 blocks a side."""
    return Image.fromarray(pixels(9, 9, seed)).resize((90, 90), Image.Resampling.NEAREST)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def image_sets(images, limit=None, seed=0):
    run = SimpleNamespace(
        seed=seed,
        monitor=SimpleNamespace(images=4),
        data=SimpleNamespace(images=images, heldout=6, limit=limit),
    )
    console = Console(file=io.StringIO(), width=200)
    return *splits.image_sets(run, console), console.file.getvalue()


def test_the_same_images_are_held_out_of_a_folder_and_of_a_table(tmp_path):
    contents = {f"{n}.png": encoded(noise(n), "png") for n in range(40)}
    (tmp_path / "in").mkdir()
    for name, content in contents.items():
        (tmp_path / "in" / name).write_bytes(content)
    table = pa.table({"image": list(contents.values()), "caption": ["a label"] * 40})
    pq.write_table(table, tmp_path / "x.parquet")
    names = list(contents)
    train, watched, heldout, printed = image_sets("in")
    assert [len(s.ids) for s in (train, watched, heldout)] == [30, 4, 6]
    assert printed == ""
    rows, watched_rows, heldout_rows, printed = image_sets("x.parquet")
    assert printed == "only pixels are read; not read: column caption (40)\n"
    for files, table in ((train, rows), (watched, watched_rows), (heldout, heldout_rows)):
        assert {names[int(i.rpartition("/")[2])] for i in table.ids} == {*files.ids}
    # no seed moves them, and the limit is of the images to train on
    few, *others, _ = image_sets("in", limit=10, seed=3)
    assert [s.ids for s in others] == [watched.ids, heldout.ids]
    assert len(few.ids) == 10
    assert set(few.ids) < set(train.ids)
    assert few.load(few.ids[0]).size == (90, 90)


def test_what_looks_like_a_held_out_image_is_not_trained_on(tmp_path):
    (tmp_path / "in").mkdir()
    for n in range(40):
        noise(n).save(tmp_path / f"in/{n}.png")
    *_, heldout, _ = image_sets("in")
    twins = heldout.ids[:2]
    for image_id in twins:
        with Image.open(tmp_path / "in" / image_id) as image:
            image.resize((180, 180)).save(tmp_path / "in" / f"twin-{image_id}", compress_level=1)
    (tmp_path / "in/copy.png").write_bytes((tmp_path / "in" / twins[0]).read_bytes())
    train, watched, heldout, printed = image_sets("in")
    sets = [{*s.ids} for s in (train, watched, heldout)]
    assert sum(map(len, sets)) == len(set().union(*sets))
    for image_id in twins:
        family = {image_id, f"twin-{image_id}"} | ({"copy.png"} if image_id == twins[0] else set())
        assert len([s for s in sets if s & family]) == 1
    assert "duplicates: 1 images repeat another one, 4 or more are near another one" in printed
    out = {p for p, why in train.skipped.items() if "which is held out, or is near it" in why}
    families = {"in/copy.png", *(f"in/{p}{i}" for i in twins for p in ("", "twin-"))}
    assert out == families - {f"in/{i}" for i in heldout.ids}


def test_images_that_all_look_alike_are_one_sentence(tmp_path):
    (tmp_path / "in").mkdir()
    for n in range(20):
        Image.new("RGB", (8, 8), (n % 2, n // 2 % 2, n)).save(tmp_path / f"in/{n}.png")
    with pytest.raises(UserError, match="too few that differ"):
        image_sets("in")
