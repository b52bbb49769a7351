"""Tables: the one column of images is read, the others are named and dropped at the door."""

import pickle

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vizer_rl.data import tables
from vizer_rl.data.open_source import check_source
from vizer_rl.data.sources import ImageFolder, open_images, reopen_images
from vizer_rl.errors import ImageError

from .test_archives import png

COLORS = [(10 * n, 0, 0) for n in range(10)]
COLUMNS = {"image": [png(c) for c in COLORS], "caption": ["a label"] * 10, "label": [3] * 10}


@pytest.fixture
def parquet(tmp_path):
    pq.write_table(pa.table(COLUMNS), tmp_path / "x.parquet", row_group_size=3)
    return tmp_path / "x.parquet"


def reds(images):
    return [images.load(image_id).getpixel((0, 0))[0] for image_id in images.ids]


def test_rows_of_parquet_are_images_and_captions_stay_outside(parquet):
    images = ImageFolder.index(parquet)
    assert images.ids == [f"x.parquet/{n:08d}" for n in range(10)]
    assert reds(images) == [c[0] for c in COLORS]
    assert images.dropped == {"column caption": 10, "column label": 10}
    assert images.file(images.ids[0]) is None
    assert [images.load(images.ids[n]).getpixel((0, 0))[0] for n in (9, 0, 5)] == [90, 0, 50]
    assert images.address == f"{parquet}#image"
    assert reds(reopen_images(images.address, images.ids[4:6])) == [40, 50]
    assert reds(pickle.loads(pickle.dumps(images))) == [c[0] for c in COLORS]


def test_the_image_column_is_the_only_one_that_is_read(parquet, monkeypatch):
    columns = []
    real = pq.ParquetFile.read_row_group

    def read_row_group(self, group, columns=None, **kwargs):
        read.append(columns)
        return real(self, group, columns=columns, **kwargs)

    read = columns
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", read_row_group)
    reds(open_images(parquet))
    assert read == [["image"]] * 4  # each row group once


@pytest.mark.parametrize("writer", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_files_of_both_formats_are_read(writer, tmp_path):
    table = pa.table(COLUMNS)
    with writer(str(tmp_path / "x.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=4)
    images = ImageFolder.index(tmp_path / "x.arrow")
    assert reds(images) == [c[0] for c in COLORS]
    assert images.dropped == {"column caption": 10, "column label": 10}


def test_what_datasets_writes_is_read_by_its_own_marks(tmp_path):
    features = datasets.Features(
        {
            "thumb": datasets.Value("binary"),
            "photo": datasets.Image(),
            "text": datasets.Value("string"),
        }
    )
    cells = [{"bytes": png(c), "path": None} for c in COLORS]
    rows = {"thumb": [b"x"] * 10, "photo": cells, "text": ["a label"] * 10}
    data = datasets.Dataset.from_dict(rows, features)
    data.to_parquet(tmp_path / "x.parquet")
    data.save_to_disk(tmp_path / "saved")
    for source in (tmp_path / "x.parquet", next((tmp_path / "saved").glob("*.arrow"))):
        images = ImageFolder.index(source)
        assert reds(images) == [c[0] for c in COLORS]
        assert images.dropped == {"column thumb": 10, "column text": 10}


def test_shards_of_tables_are_one_source(tmp_path):
    for n in range(3):
        pq.write_table(pa.table({"image": [png((n, 0, 0))] * 2}), tmp_path / f"{n}.parquet")
    for pattern in ("{0..2}.parquet", "*.parquet"):
        images = open_images(tmp_path / pattern)
        assert reds(images) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ImageError, match="1 of 4 shards are missing"):
        open_images(tmp_path / "{0..3}.parquet")


def test_a_column_can_be_named_and_must_hold_images(parquet, tmp_path):
    assert open_images(f"{parquet}#image").ids == open_images(parquet).ids
    for column, sentence in (
        ("caption", "column 'caption' of '{0}' holds string, no images; allowed: image"),
        ("imagee", "'{0}' has no column 'imagee'; allowed: image; nearest: image"),
    ):
        with pytest.raises(ImageError) as error:
            open_images(f"{parquet}#{column}")
        assert sentence.format(parquet) in str(error.value)
        assert check_source(f"{parquet}#{column}") == str(error.value)
    two = tmp_path / "two.parquet"
    pq.write_table(pa.table({"a": [png()], "b": [png()]}), two)
    with pytest.raises(ImageError, match=r"several columns of images, a, b: name one, as in .*#a"):
        open_images(two)
    assert len(open_images(f"{two}#b").ids) == 1
    none = tmp_path / "none.parquet"
    pq.write_table(pa.table({"text": ["x"]}), none)
    with pytest.raises(ImageError, match="has no column of images: it has text"):
        open_images(none)


def test_rows_without_a_usable_image_are_skipped(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [
        {"bytes": png(), "path": "a.png"},
        None,
        {"bytes": None, "path": "/etc/passwd"},
        {"bytes": b"text", "path": None},
    ]
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), tmp_path / "x.parquet")
    images = ImageFolder.index(tmp_path / "x.parquet")
    assert images.ids == ["x.parquet/00000000"]
    assert list(images.skipped.values()) == [
        "its row holds no image",
        "its row names a file and holds no image",
        "not an image that Pillow can read",
    ]


def test_damaged_and_empty_tables_are_one_sentence(tmp_path):
    for suffix in ("parquet", "arrow"):
        (tmp_path / f"x.{suffix}").write_bytes(b"no table" * 50)
        with pytest.raises(ImageError, match=f"is damaged, or no .{suffix}") as error:
            open_images(tmp_path / f"x.{suffix}")
        assert "\n" not in str(error.value)
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "y.parquet")
    with pytest.raises(ImageError, match="holds no row"):
        open_images(tmp_path / "y.parquet")


def test_a_table_that_is_replaced_loses_its_images(parquet):
    images = ImageFolder.index(parquet)
    pq.write_table(pa.table({"image": [png()]}), parquet)
    assert images.changed(images.ids[0])
    with pytest.raises(ImageError, match="was replaced after it was indexed"):
        images.load(images.ids[0])


def test_a_row_group_that_does_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_GROUP", 50_000)
    path = tmp_path / "x.parquet"
    columns = {"image": [png(c) for c in COLORS], "caption": [str(n) * 20_000 for n in range(10)]}
    pq.write_table(pa.table(columns), path)
    assert len(open_images(path).ids) == 10  # captions are not read
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": bytes([n]) * 20_000, "path": None} for n in range(10)], kind)
    pq.write_table(pa.table({"image": cells}), path)
    with pytest.raises(ImageError, match=r"has a row group of .*write it with row_group_size=100"):
        open_images(path)
    pq.write_table(pa.table({"image": cells}), path, row_group_size=2)
    assert len(open_images(path).ids) == 10
