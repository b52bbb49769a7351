"""Files of captions without a model: journal, forms, marks, the list of those to look at."""

import csv
import json
import os
import zipfile
from pathlib import Path

import pyarrow.parquet
import pytest
from PIL import Image

from vizer_rl import arguments
from vizer_rl.errors import Fault, UserError
from vizer_rl.evaluation import marks
from vizer_rl.evaluation.captioning import doubtful_list, outputs
from vizer_rl.evaluation.captioning.journal import Journal
from vizer_rl.evaluation.captioning.open_set import OpenSet
from vizer_rl.evaluation.captioning.outputs import make_output
from vizer_rl.evaluation.captioning.pictures import Picture, Pictures, find_pictures

from ..faults import refuse

DOUBT = {"start": 2, "end": 9, "word": "striped", "instead": "solid"}
UNSURE = {"start": 10, "end": 16, "word": "orange", "certainty": 0.31}


def row(name, caption="a striped orange circle", key="k", **more):
    return {"image": name, "caption": caption, "ended": True, "bytes": 7, "key": key, **more}


def photos(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(folder / name)
    return folder


# Journal


def test_a_journal_is_what_was_added_and_goes_on(tmp_path):
    path = tmp_path / "new" / "captions.jsonl"
    journal = Journal(path, "k")
    journal.append([row("a.png"), row("b.png", score=0.25, doubtful=[DOUBT], unsure=[UNSURE])])
    journal.append([row("c.png", "two\u2028lines\nof text", doubtful=None)])
    again = Journal(path, "k")
    assert again.rows == journal.rows
    assert list(again.rows) == ["a.png", "b.png", "c.png"]
    assert len(path.read_bytes().splitlines()) == 3  # a line each, whatever a caption holds


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_cut_is_cut_off(tmp_path, cut):
    path = tmp_path / "captions.jsonl"
    Journal(path, "k").append([row("a.png"), row("b.png")])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    journal = Journal(path, "k")
    assert list(journal.rows) == ["a.png"]
    assert path.read_bytes() == whole[:-cut]  # reading changes nothing
    journal.append([row("b.png")])
    assert path.read_bytes() == whole


def test_zeros_behind_a_power_failure_are_cut_off(tmp_path):
    path = tmp_path / "captions.jsonl"
    Journal(path, "k").append([row("a.png")])
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 40 + b"\n")
    journal = Journal(path, "k")
    journal.close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", ["my own captions", '{"a": 1}\n{"b": 2}\n', "x\n" * 3])
def test_a_file_of_another_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "captions.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=r"does not hold captions of this command: .*--overwrite"):
        Journal(path, "k")
    assert path.read_text() == content
    Journal(path, "k", overwrite=True).append([row("a.png")])
    assert list(Journal(path, "k").rows) == ["a.png"]


def test_captions_of_another_policy_are_never_mixed_in(tmp_path):
    path = tmp_path / "captions.jsonl"
    Journal(path, "old").append([row("a.png", key="old")])
    with pytest.raises(UserError, match=r"holds captions \(1\) of another policy"):
        Journal(path, "new")
    journal = Journal(path, "new", overwrite=True)
    assert journal.rows == {}
    assert list(Journal(path, "old").rows) == ["a.png"]  # until the first new one is there
    journal.append([row("b.png", key="new")])
    assert list(Journal(path, "new").rows) == ["b.png"]


def test_an_image_that_was_replaced_is_captioned_again(tmp_path):
    path = tmp_path / "captions.jsonl"
    Journal(path, "k").append([row("a.png"), row("b.png"), row("gone.png")])
    journal = Journal(path, "k")
    assert [*journal.keep({"a.png": 7, "b.png": 8})] == ["b.png"]
    assert list(journal.rows) == ["a.png", "gone.png"]
    journal.append([row("b.png", "anew")])
    assert [json.loads(line)["caption"] for line in path.open()][-1] == "anew"
    assert len(path.read_text().splitlines()) == 3


def test_the_text_file_of_an_image_that_was_replaced_goes_but_a_corrected_one_stays(tmp_path):
    names = ["a.png", "b.png", "c.png"]
    pictures = find_pictures([photos(tmp_path, *names)])
    output = make_output("sidecar", None, pictures)
    sizes = {picture.name: picture.size for picture in pictures.rows}
    old = {"a.png": sizes["a.png"], "b.png": 1, "c.png": 1}  # b and c are other images now
    rows = [row(name) | {"bytes": size} for name, size in old.items()]
    Journal(output.journal("k"), "k").append(rows)
    outputs.write_sidecars(output, rows)
    (tmp_path / "c.txt").write_text("corrected by hand")
    images = OpenSet(output, pictures, "k", overwrite=False)
    assert [picture.name for picture in images.waiting] == ["b.png"]
    assert images.kept == {"c.png"}
    assert not (tmp_path / "b.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "a striped orange circle"
    assert (tmp_path / "c.txt").read_text() == "corrected by hand"


def test_a_disk_that_takes_no_line_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "captions.jsonl"
    journal = Journal(path, "k")
    journal.append([row("a.png")])
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(Fault, match=r"captions\.jsonl' cannot be written: .*No space left"):
        journal.append([row("b.png")])
    monkeypatch.undo()
    assert "a.png" in Journal(path, "k").rows


# Images


def test_images_are_named_below_the_root_of_all_sources(tmp_path):
    photos(tmp_path, "a b/1.png", "a b/deep/2.png", "c/3.png")
    pictures = find_pictures([tmp_path / "c" / "3.png", tmp_path / "a b", tmp_path / "c"])
    assert pictures.root == tmp_path
    assert [p.name for p in pictures.rows] == ["c/3.png", "a b/1.png", "a b/deep/2.png"]
    assert pictures.rows[1].load().size == (8, 8)
    alone = find_pictures([tmp_path / "a b"])
    assert [p.name for p in alone.rows] == ["1.png", "deep/2.png"]
    (tmp_path / "empty").mkdir()
    some = find_pictures([tmp_path / "gone.png", tmp_path / "c", tmp_path / "empty"])
    starts = [sentence.split("'")[0] for sentence in some.remarks]
    assert starts == ["Left out: image ", "Left out: no image file in "]
    with pytest.raises(UserError, match="not found"):
        find_pictures([tmp_path / "gone.png"])


def test_images_of_archives_are_no_files_and_text_beside_them_is_not_read(tmp_path):
    photos(tmp_path / "set", "a.png")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.write(tmp_path / "set" / "a.png", "deep/b.png")
        archive.writestr("deep/b.txt", "a label")
    pictures = find_pictures([tmp_path / "set", tmp_path / "more.zip"])
    assert [p.name for p in pictures.rows] == ["set/a.png", "more.zip/deep/b.png"]
    assert [p.file is None for p in pictures.rows] == [False, True]
    assert pictures.rows[1].load().size == (8, 8)
    assert pictures.remarks == ["Not read, beside the images: .txt (1)"]
    with pytest.raises(UserError, match="lies in an archive"):
        make_output("sidecar", None, pictures)


# Forms


def test_each_form_goes_to_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures = find_pictures([photos(tmp_path / "set", "a.png")])
    assert arguments.FORMS == outputs.FORMS
    place = {form: make_output(form, None, pictures) for form in outputs.FORMS}
    assert place["sidecar"].sidecar("x/a.b.png") == tmp_path / "set" / "x" / "a.b.txt"
    assert place["metadata.jsonl"].path == tmp_path / "set" / "metadata.jsonl"
    assert place["csv"].path == Path("captions.csv")
    assert place["jsonl"].journal("k") == place["jsonl"].path == Path("captions.jsonl")
    assert place["parquet"].journal("k") == Path(".captions.parquet.journal")
    assert make_output("csv", tmp_path / "set", pictures).path == tmp_path / "set" / "captions.csv"


@pytest.mark.parametrize(
    ("form", "to", "sides", "message"),
    [
        ("sidecar", None, 2, "holds one caption of an image: leave out --base"),
        ("metadata.jsonl", None, 2, "holds one caption of an image"),
        ("csv", "x.parquet", 1, "does not end with .csv"),
        ("metadata.jsonl", "captions.jsonl", 1, "ImageFolder reads metadata.jsonl"),
        ("metadata.jsonl", "else/metadata.jsonl", 1, "must lie in '.*set' or above it"),
        ("sidecar", "set/a.png", 1, "is a file; sidecars need a folder"),
    ],
)
def test_a_form_that_cannot_hold_what_is_wanted_is_refused(
    tmp_path, monkeypatch, form, to, sides, message
):
    monkeypatch.chdir(tmp_path)
    pictures = find_pictures([photos(tmp_path / "set", "a.png")])
    with pytest.raises(UserError, match=message) as error:
        make_output(form, Path(to) if to else None, pictures, sides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", outputs.IN_FOLDER)
def test_an_archive_has_no_place_for_text_files(tmp_path, form):
    inside = Pictures(tmp_path, [Picture("x/1.jpg", 7, lambda: None, None)], [])
    with pytest.raises(
        UserError, match=r"'x/1.jpg' lies in an archive: take jsonl, csv or parquet"
    ):
        make_output(form, None, inside)
    assert make_output("parquet", None, inside).form == "parquet"


def test_a_folder_that_takes_no_file_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    pictures = find_pictures([photos(tmp_path / "set", "a.png", "deep/b.png")])
    output = make_output("sidecar", None, pictures)
    outputs.check_writable(output, pictures.rows)
    before = sorted(tmp_path.rglob("*"))
    refuse(monkeypatch, tmp_path / "set" / "deep", 30)
    with pytest.raises(Fault, match=r"deep' cannot be written: .*Read-only file system"):
        outputs.check_writable(output, pictures.rows)
    new = make_output("jsonl", tmp_path / "set" / "deep" / "new" / "x.jsonl", pictures)
    with pytest.raises(Fault, match="Read-only"):
        outputs.check_writable(new, pictures.rows)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("form", "name"), [("sidecar", "below"), ("csv", "below/x.csv")])
def test_a_place_below_a_file_is_refused(tmp_path, form, name):
    pictures = find_pictures([photos(tmp_path, "a.png")])
    output = make_output(form, tmp_path / "a.png" / name, pictures)
    with pytest.raises(UserError, match=r"a\.png' is no folder"):
        outputs.check_writable(output, pictures.rows)


@pytest.mark.parametrize("form", ["csv", "parquet", "metadata.jsonl"])
def test_a_file_that_was_there_is_not_replaced_unasked(tmp_path, form):
    pictures = find_pictures([photos(tmp_path, "a.png")])
    output = make_output(form, tmp_path, pictures)
    outputs.check_owned(output, overwrite=False)
    output.path.write_text("mine")
    with pytest.raises(UserError, match="was not written by this command"):
        outputs.check_owned(output, overwrite=False)
    outputs.check_owned(output, overwrite=True)
    Journal(output.journal(""), "k").append([row("a.png")])
    outputs.check_owned(output, overwrite=False)


ROWS = [
    row("a.png", 'a, b\n"c" é', score=0.25, base="x", doubtful=[DOUBT], unsure=[UNSURE]),
    row("deep/b.png", "=1+1", score=0.5, base="y", doubtful=[], unsure=[]),
]


def test_csv_reads_back(tmp_path):
    output = make_output("csv", tmp_path, find_pictures([photos(tmp_path, "a.png")]))
    outputs.write_whole(output, tmp_path, ROWS)
    first, second = csv.DictReader(output.path.open(encoding="utf-8", newline=""))
    assert list(first) == ["image", "caption", "base", "score", "doubtful", "unsure", "ended"]
    assert (first["caption"], first["score"]) == ('a, b\n"c" é', "0.25")
    assert (first["doubtful"], first["unsure"]) == ("striped > solid", "orange 0.31")
    assert (second["image"], second["caption"], second["doubtful"]) == ("deep/b.png", "=1+1", "")


def test_parquet_reads_back(tmp_path):
    output = make_output("parquet", tmp_path, find_pictures([photos(tmp_path, "a.png")]))
    outputs.write_whole(output, tmp_path, ROWS)
    first, second = pyarrow.parquet.read_table(output.path).to_pylist()
    assert first["doubtful"] == [DOUBT]
    assert first["unsure"][0]["certainty"] == pytest.approx(0.31)
    assert (second["caption"], second["score"], second["ended"]) == ("=1+1", 0.5, True)
    assert second["doubtful"] == []
    assert "key" not in first


def test_imagefolder_reads_its_metadata(tmp_path, monkeypatch):
    from datasets import load_dataset

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = photos(tmp_path / "set", "a.png", "deep/b.png")
    output = make_output("metadata.jsonl", None, find_pictures([folder]))
    outputs.write_whole(output, folder, ROWS)
    lines = [json.loads(line) for line in output.path.open(encoding="utf-8")]
    assert [line["file_name"] for line in lines] == ["a.png", "deep/b.png"]
    assert [*lines[0]] == ["file_name", "text"]
    data = load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))
    assert data["train"]["text"] == [r["caption"] for r in ROWS]


def test_metadata_above_the_images_names_them_from_there(tmp_path):
    folder = photos(tmp_path / "set" / "of", "a.png")
    output = make_output("metadata.jsonl", tmp_path / "set", find_pictures([folder]))
    outputs.write_whole(output, folder, ROWS[:1])
    assert json.loads(output.path.read_text())["file_name"] == "of/a.png"


def test_a_sidecar_is_one_line(tmp_path):
    output = make_output("sidecar", None, find_pictures([photos(tmp_path, "a.png")]))
    outputs.write_sidecars(output, ROWS[:1])
    assert (tmp_path / "a.txt").read_bytes() == 'a, b "c" é'.encode()
    assert outputs.has_sidecar(output, ROWS[0])
    assert not outputs.has_sidecar(output, ROWS[1])


def test_what_a_killed_process_left_is_cleared_and_nothing_else(tmp_path):
    pictures = find_pictures([photos(tmp_path, "a.png", "deep/b.png")])
    output, gone = make_output("sidecar", None, pictures), 2**22 + 1  # no process has this number
    left = [tmp_path / f".a.txt.{gone}.part", tmp_path / "deep" / f".b.txt.{gone}.part"]
    left.append(tmp_path / f".captions-k.jsonl.{gone}.part".replace(".c", "..c"))
    others = [tmp_path / f".a.txt.{os.getpid()}.part", tmp_path / f".mine.txt.{gone}.part"]
    for path in [*left, *others]:
        path.touch()
    outputs.clear_parts(output, pictures.rows, "k")
    assert [path.exists() for path in [*left, *others]] == [False] * 3 + [True] * 2


# Those to look at, and marks


def test_the_list_has_the_worst_first_and_says_why():
    plain = [row(f"{k:02}.png", score=0.3 + k / 100, doubtful=[]) for k in range(20)]
    rows = [
        *plain,
        row("low.png", score=0.1, doubtful=[]),
        row("cut.png", score=0.4, doubtful=[]) | {"ended": False},
        row("two.png", score=0.4, doubtful=[DOUBT], unsure=[UNSURE]),
        row("one.png", score=0.35, doubtful=[DOUBT]),
    ]
    lines = doubtful_list.doubtful_list(rows)
    assert [line["image"] for line in lines] == [
        "two.png",
        "low.png",
        "00.png",
        "one.png",
        "cut.png",
    ]
    assert lines[0]["why"] == [
        "'striped': 'solid' fits the image better",
        "'orange': certainty 0.31",
    ]
    assert lines[1]["why"] == ["held-out score 0.100, among the lowest 5%"]
    assert lines[4]["why"] == ["it comes to no end"]
    assert doubtful_list.doubtful_list(plain[:5]) == []  # too few to have a lowest twentieth


def test_a_file_that_is_no_such_list_is_not_replaced(tmp_path):
    path = tmp_path / "list.jsonl"
    doubtful_list.check_list(path, overwrite=False)
    assert doubtful_list.write_list(path, [row("a.png", doubtful=[DOUBT])]) == 1
    doubtful_list.check_list(path, overwrite=False)
    path.write_text('{"mine": 1}\n')
    with pytest.raises(UserError, match="is no list of doubtful captions"):
        doubtful_list.check_list(path, overwrite=False)
    doubtful_list.check_list(path, overwrite=True)
    for wrong, why in [
        (tmp_path, "is a folder"),
        (path / "below" / "x.jsonl", r"lies below the file '.*list\.jsonl'"),
        (tmp_path / "new" / ".." / "out.jsonl", "is a file that --out writes itself"),
    ]:
        with pytest.raises(UserError, match=why):
            doubtful_list.check_list(wrong, True, [tmp_path / "out.jsonl"])


def test_marks_of_both_kinds_stand_together():
    text = "a striped orange circle"
    assert marks.marked_words(text, [DOUBT]) == "a *striped* orange circle"
    both = marks.marked_words(text, [DOUBT], [{**UNSURE, "start": 2, "end": 9}, UNSURE])
    assert both == "a *striped*~.31 orange~.31 circle"
    assert len(marks.legend([{"doubtful": [DOUBT], "unsure": []}], 0.8)) == 1
    assert len(marks.legend([{"doubtful": [DOUBT], "unsure": [UNSURE]}], 0.8)) == 2
    assert marks.legend([{"caption": text}], 0.8) == []
