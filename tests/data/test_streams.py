"""Data sets of the hub, from folders: whole or as a stream of which no more is read than asked."""

import time
from concurrent.futures import ThreadPoolExecutor

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vizer_rl.data import streams
from vizer_rl.data.open_source import check_source
from vizer_rl.data.row_paths import checked_path
from vizer_rl.data.sources import ImageFolder, open_images, reopen_images
from vizer_rl.errors import ImageError

from ..pictures import save
from .test_archives import png, tar


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """A folder that is a data set: four shards of ten images with captions, and a test split."""
    folder = tmp_path_factory.mktemp("set")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    for n in range(4):
        cells = [{"bytes": png((n, k, 0)), "path": None} for k in range(10)]
        rows = datasets.Dataset.from_dict({"image": cells, "text": ["a label"] * 10}, features)
        rows.to_parquet(folder / f"train-{n:05d}-of-00004.parquet")
    rows.to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    # 5 s that `datasets` waits for threads of arrow's at the end of each stream
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05, raising=False)


def colors(images):
    return [images.load(image_id).getpixel((0, 0))[:2] for image_id in images.ids]


def test_a_whole_split_is_read_by_row(data_set):
    images = ImageFolder.index(f"hf:{data_set}[train]")
    assert images.ids == [f"{n:08d}" for n in range(40)]
    assert colors(images) == [(n, k) for n in range(4) for k in range(10)]
    assert images.dropped == {"column text": 40}
    assert images.file("00000000") is None
    assert colors(reopen_images(images.address, ["00000031"])) == [(3, 1)]
    assert len(open_images(f"hf:{data_set}[test]").ids) == 10


def test_a_stream_reads_no_more_than_it_is_asked_for(data_set, monkeypatch, tmp_path):
    taken, lines = [], []
    real = streams._contents

    def contents(*args):
        for content in real(*args):
            taken.append(content)
            yield content

    monkeypatch.setattr(streams, "_contents", contents)
    monkeypatch.setattr(streams, "BUFFER", 5)
    source = f"stream:{data_set}[train:12]"
    images = open_images(source, lines.append)
    assert lines == [f"reading the first 12 images of {source}"]
    assert len(images.ids) == len(taken) == 12
    assert images.dropped == {"column text": 12}
    first = colors(images)
    assert len(set(first)) == 12
    assert first != [(n, k) for n in range(4) for k in range(10)][:12]  # shuffled
    again = open_images(source, lines.append)  # a resumed run reads what the first one read
    assert colors(again) == first
    assert len(taken) == 12
    for path in (tmp_path / "data/cache/streams").iterdir():
        path.unlink()
    assert colors(open_images(source)) == first  # on another machine, too
    assert colors(reopen_images(images.address, ["00000003"])) == first[3:4]
    assert len(open_images(f"stream:{data_set}[train:99]").ids) == 40  # no length is needed


def test_a_stream_of_shards_leaves_their_labels(tmp_path):
    for n in range(2):
        rows = [{f"{k}.png": png((n, k, 0)), f"{k}.txt": b"a label"} for k in range(3)]
        tar(tmp_path / f"s/{n}.tar", {**rows[0], **rows[1], **rows[2]})
    images = ImageFolder.index(f"stream:{tmp_path}/s/{{0..1}}.tar[train:4]")
    assert len(set(colors(images))) == 4
    assert set(images.dropped) == {"column __key__", "column __url__", "column txt"}


def test_a_folder_of_images_is_a_data_set_too(tmp_path):
    for k in range(3):
        save(tmp_path / f"in/{k}.png", (0, k, 0))
    for kind in ("hf", "stream"):
        images = ImageFolder.index(f"{kind}:{tmp_path}/in[train]")
        assert sorted(colors(images)) == [(0, 0), (0, 1), (0, 2)]


def test_addresses_that_cannot_be_opened_are_one_sentence(data_set, tmp_path):
    for source, sentence in (
        ("hf:user/no-such-set[train]", r"cannot be opened: .*user/no-such-set"),
        (f"hf:{data_set}[validation]", "cannot be opened: .*validation"),
        (f"hf:{data_set}[train]#text", "column 'text' of '.*' holds string, no images"),
        ("hf:user/name[train:5]", "is no address of a data set; allowed: hf:USER/NAME"),
        ("stream:user/name[train", "is no address of a data set"),
        ("hf:./nowhere[train]", r"'\./nowhere' not found"),
        ("stream:./{0..3}.tar[train]", r"'0.tar' not found; 4 of 4 shards are missing"),
    ):
        with pytest.raises(ImageError, match=sentence) as error:
            open_images(source)
        assert "\n" not in str(error.value)
    assert "no address" in check_source("hf:user/name[train:5]")
    assert check_source("hf:user/name[train]") == ""
    assert not (tmp_path / "data/cache/streams").exists()


def test_a_stream_that_breaks_off_leaves_nothing(data_set, monkeypatch, tmp_path):
    def contents(*args):
        yield png()
        raise ConnectionError("the line is cut")

    monkeypatch.setattr(streams, "_contents", contents)
    with pytest.raises(ImageError, match=r"cannot be opened: the line is cut\.$"):
        open_images(f"stream:{data_set}[train:12]")
    assert {path.suffix for path in (tmp_path / "data/cache/streams").iterdir()} == {".lock"}


def test_of_two_that_open_a_stream_at_a_time_one_downloads_it(data_set, monkeypatch):
    calls, real = [], streams._write

    def write(*args):
        calls.append(args)
        time.sleep(0.3)  # the other one comes meanwhile
        real(*args)

    monkeypatch.setattr(streams, "_write", write)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(open_images, [f"stream:{data_set}[train:12]"] * 2)
    assert len(calls) == 1
    assert first.state(first.ids[0]) == second.state(first.ids[0])


def test_a_data_set_with_other_images_is_not_taken_for_the_old_one(tmp_path):
    (tmp_path / "set").mkdir()
    identities = []
    for color in ((1, 0, 0), (1, 0, 0), (2, 0, 0)):
        content = pa.table({"image": [png(color)] * 3})
        if not identities or color == (2, 0, 0):
            pq.write_table(content, tmp_path / "set/train.parquet")
        images = open_images(f"hf:{tmp_path}/set[train]")
        identities.append(images.identity(images.ids[0]))
    assert identities[0] == identities[1] != identities[2]


@pytest.mark.parametrize(
    ("path", "is_read"),
    [
        ("{set}/a.png", True),
        ("file://{set}/a.png", True),
        ("zip://a.png::{set}/x.zip", True),
        ("zip://a.png::tar://x.zip::https://host/x.tar", True),
        ("gzip://a.png::hf://datasets/user/name/a.png.gz", True),
        ("/home/me/x.png", False),
        ("{set}/../x.png", False),
        ("x.png", False),
        ("~/x.png", False),
        ("file:/home/me/x.png", False),
        ("local:///home/me/x.png", False),
        ("local://{set}/a.png", False),
        ("file://file:///home/me/x.png", False),
        ("file://https://../../../home/me/x.png", False),
        ("file:///home/me/x.png::https://host/", False),
        ("/home/me/x.png::https://host/", False),
        ("zip://a.png::/home/me/x.png::https://host/", False),
        ("https://host/x.zip::/home/me/x.png", False),
        ("simplecache::file:///home/me/x.png", False),
    ],
)
def test_a_path_leads_nowhere_else_by_any_chain(path, is_read, tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path / "set")
    path = path.format(set=tmp_path / "set")
    if is_read:
        assert checked_path(path, str(tmp_path / "set")) == path
    else:
        with pytest.raises(ImageError, match="names a file elsewhere on this machine"):
            checked_path(path, str(tmp_path / "set"))


def test_a_row_cannot_name_a_file_elsewhere(tmp_path):
    private = save(tmp_path / "private.png")
    features = datasets.Features({"image": datasets.Image()})
    cells = [{"bytes": png(), "path": None}, {"bytes": None, "path": str(private)}]
    (tmp_path / "set").mkdir()
    table = pa.table({"image": cells}, schema=features.arrow_schema)
    pq.write_table(table, tmp_path / "set/train.parquet")
    for kind, reason in (("hf", "its row names a file elsewhere"), ("stream", "holds no image")):
        images = ImageFolder.index(f"{kind}:{tmp_path}/set[train]")
        assert len(images.ids) == 1
        assert reason in next(iter(images.skipped.values()))


def test_a_row_without_an_image_is_skipped(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(pa.table({"image": [png(), None, b"text"]}), folder / "train.parquet")
    images = ImageFolder.index(f"stream:{folder}[train]")
    assert len(images.ids) == 1
    assert sorted(images.skipped.values()) == [
        "its row holds no image",
        "not an image that Pillow can read",
    ]
