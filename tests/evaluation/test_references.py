"""Reference files of every format, matching to held-out images, and what is wrong with them."""

import json
import math

import pytest

from vizer_rl import cli
from vizer_rl.data.sources import ImageFolder
from vizer_rl.errors import UserError
from vizer_rl.evaluation import caption_metrics, evaluate
from vizer_rl.evaluation.caption_metrics import CaptionMetrics, Plan, plan
from vizer_rl.evaluation.references import References, read_references
from vizer_rl.training import caption_rewards

from .evaluated_run import held_out, results, run  # noqa: F401

IDS = ["val/a.jpg", "val/b.jpg", "COCO_val2014_000000000042.jpg"]
COCO = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 42, "file_name": "x.jpg"}],
    "annotations": [
        {"image_id": 7, "id": 1, "caption": "one"},
        {"image_id": 42, "caption": "three"},
        {"image_id": 7, "caption": " two\n"},
    ],
}
INSTANCES = {
    "images": COCO["images"],
    "annotations": [{"image_id": 7, "category_id": 1}, {"image_id": 7, "category_id": 2}],
    "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "tv"}],
}
KARPATHY = {
    "dataset": "coco",
    "images": [
        {"filename": "a.jpg", "imgid": 5, "sentences": [{"raw": "one"}, {"raw": "two"}]},
        {"filename": "other.jpg", "cocoid": 42, "sentences": [{"raw": "three"}]},
    ],
}
FILES = {
    "captions_val.json": json.dumps(COCO),
    "dataset_coco.json": json.dumps(KARPATHY),
    "map.json": json.dumps({"a.jpg": ["one", "two"], "42": "three"}),
    "rows.json": json.dumps(
        [{"image_id": 42, "caption": "three"}, {"file": "a", "captions": ["one", "two"]}]
    ),
    "r.jsonl": '{"image_id": "val/a.jpg", "caption": "one"}\n\n'
    '{"image": "a.jpg", "caption": "two"}\n{"image": 42, "caption": "three"}\n',
    "r.csv": 'image,caption\na.jpg,one\na.jpg,"two"\n42,three\n',
    "flickr30k.csv": "image_name| comment_number| comment\n"
    "a.jpg| 0| one\na.jpg| 1| two\n42| 0| three\n",
    "r.tsv": "\ufefffile_name\tcaption\r\na.jpg\tone\r\na.jpg\ttwo\r\n42\tthree\r\n",
    "Flickr8k.token.txt": "a.jpg#0\tone\na.jpg#1\ttwo\n42.jpg#0\tthree\n",
}


def written(folder, name, content):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_captions(name, tmp_path):
    ids = [IDS[0], "42.jpg"] if name.startswith("Flickr8k") else IDS
    references = read_references([written(tmp_path, name, FILES[name])], ids)
    assert references.captions == {ids[0]: ["one", "two"], ids[-1]: ["three"]}
    assert references.objects == {}


def test_instances_give_classes_and_files_are_put_together(tmp_path):
    paths = [written(tmp_path, "i.json", INSTANCES), written(tmp_path, "c.json", COCO)]
    references = read_references(paths, IDS)
    assert references.objects == {IDS[0]: {"dog", "tv"}, IDS[2]: set()}
    assert references.captions[IDS[0]] == ["one", "two"]
    assert references.sentences[0] == "References: 3 captions of 2 of 3 images, objects of 2."


def test_what_does_not_match_is_counted_and_named(tmp_path):
    ids = [*IDS, "deep/a.jpg", *(f"n{i}.jpg" for i in range(4))]
    captions = {"a.jpg": "fits two", "val/b.jpg": "fits", "gone.jpg": "fits none", "n0": " "}
    references = read_references([written(tmp_path, "m.json", captions)], ids)
    assert references.captions == {"val/b.jpg": ["fits"]}
    assert references.without == [i for i in ids if i != "val/b.jpg"]
    assert references.not_here == ["a.jpg", "gone.jpg"]
    assert references.sentences == [
        "References: 1 captions of 1 of 8 images.",
        f"7 images have none: 'val/a.jpg', '{IDS[2]}', 'deep/a.jpg', ….",
        "2 images of the files are not here: 'a.jpg', 'gone.jpg'.",
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("r.xml", "", "format '.xml' is not read; allowed: .json, .jsonl, .csv, .tsv, .txt"),
        ("r.jsn", "", "format '.jsn' is not read; allowed: .*; nearest: .json"),
        ("r.json", '{"images": [', "'.*r.json' is damaged: Expecting value"),
        ("r.json", "", "'.*r.json' is damaged: Expecting value"),
        ("r.json", "{}", "has no images; allowed: COCO captions or instances, a Karpathy"),
        ("r.json", "3", "has no images; allowed: COCO captions"),
        ("r.json", {"a.jpg": 3}, "is damaged: a.jpg"),
        ("r.json", {"annotations": [{"image_id": 7}]}, "is damaged: annotations.0.caption: Field"),
        ("r.json", {"annotations": "x"}, "is damaged: annotations: Input should be a valid list"),
        ("r.json", {"images": [{"filename": "a"}]}, "is damaged: 0.sentences: Field required"),
        ("r.json", [{"image": "a"}], r"r.json:1': .*; allowed: an image \(file_name, .*\) and its"),
        ("r.json", {**INSTANCES, "categories": []}, "is damaged: no category 1"),
        (
            "r.json",
            {**INSTANCES, "categories": [{"id": 1, "name": "dogs"}]},
            "'dogs' is no class of COCO; allowed: one of 80 names; nearest: dog",
        ),
        ("r.jsonl", '{"image": "a.jpg", "caption": "x"}\n{"ima', "r.jsonl:2' is damaged: "),
        ("r.csv", "a.jpg,one\n", "begins with 'a.jpg,one'; allowed: heads for the image"),
        ("r.csv", 'image,caption\na.jpg,"one\n', "is damaged: unexpected end of data"),
        ("r.csv", "image,caption\na.jpg\n", "r.csv:2': .*; allowed: an image"),
        ("r.txt", "a.jpg#0\tone\nbroken\n", "r.txt:2' is damaged: 'broken'"),
        ("r.json", {"c.jpg": "x"}, "has none of the 3 images: it names 'c.jpg', they are 'val/a"),
        ("r.json", {"val/aa.jpg": "x"}, "; nearest: val/a.jpg"),
    ],
)
def test_files_that_cannot_be_used_are_one_sentence(name, content, says, tmp_path):
    path = written(tmp_path, name, content)
    with pytest.raises(UserError, match=says) as error:
        read_references([path], IDS)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_and_a_file_that_is_not_there(tmp_path):
    (tmp_path / "r.csv").write_bytes(b"image,caption\na,\xff\n")
    with pytest.raises(UserError, match=r"r.csv' cannot be read: .*utf-8"):
        read_references([tmp_path / "r.csv"], IDS)
    with pytest.raises(UserError, match=r"reference file '.*q.csv' not found; nearest: .*r.csv"):
        read_references([tmp_path / "q.csv"], IDS)


@pytest.fixture
def folder(tmp_path):
    return ImageFolder("", tmp_path, IDS, {})


def test_metrics_that_are_named_must_be_possible(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("VIZER_METEOR_JAR", raising=False)
    path = written(tmp_path, "c.json", COCO)
    for files, names, says in [
        ([], ["cidr"], "metric 'cidr' is unknown; allowed: bleu, .*; nearest: cider_d"),
        ([], ["cider_d"], "'cider_d' cannot be computed: it needs captions as references"),
        ([path], ["chair"], "'chair' cannot be computed: no file of COCO instances"),
        ([path], ["meteor"], "'meteor' cannot be computed: VIZER_METEOR_JAR does not name"),
    ]:
        with pytest.raises(UserError, match=says):
            plan(files, names, folder)


def test_without_names_all_that_can_be_computed_is_and_the_rest_is_listed(folder, tmp_path):
    assert plan([], [], folder) is None
    assert plan([], ["clip_score"], folder).names == ["clip_score"]
    path = written(tmp_path, "references.json", COCO)  # among the images
    found = plan([], [], folder)
    assert found.references.files == [str(path)]
    assert {"bleu", "rouge_l", "cider_d", "ref_clip_score"} < set(found.names)
    assert "chair is left out: no file of COCO instances is given (--references)." in found.left_out


def test_an_image_without_references_has_no_number(monkeypatch):
    class Scorer:
        def image_features(self, ids, images):
            return None

    references = References(captions={"a": ["a b c d"], "c": ["e f g h"]})
    chosen, images = Plan(references, ["bleu", "cider_d"], []), ImageFolder("", None, [], {})
    metrics = CaptionMetrics(chosen, images, ["a", "b", "c"], Scorer())
    columns = metrics(["a b c d", "x", "e f g h"])
    assert columns["cider_d"].tolist() == pytest.approx([10, math.nan, 10], nan_ok=True)
    assert columns["bleu_4"].rows_NS[1].tolist() == [0] * 10
    assert columns["bleu_4"].value(columns["bleu_4"].rows_NS.sum(0)) == pytest.approx(1)


def test_evaluate_with_references_and_objects(run, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(caption_rewards, "judge_anew", lambda *_: {})  # a toy has no rewards
    captions = {i: [run.stored[i]["caption"], "a red circle"] for i in run.ids[1:]}
    paths = [written(tmp_path, "refs.json", captions | {"z.png": "gone"})]
    instances = {**INSTANCES, "annotations": [], "images": []}
    for number, image_id in enumerate(run.ids):
        instances["images"].append({"id": number, "file_name": image_id})
    paths.append(written(tmp_path, "instances.json", instances))
    words = [str(path) for path in paths]
    code = cli.main(
        ["evaluate", "--run", str(run.directory), "--no-controls", "--references", *words]
    )
    message = capsys.readouterr().out
    assert code == 0, message
    matches, rows = results(run.directory)
    added = [*(f"bleu_{n}" for n in (1, 2, 3, 4)), "rouge_l", "cider_d", "clip_score"]
    added += ["ref_clip_score", "chair_i", "chair_s", "object_recall"]
    added += ["recall_1", "recall_5", "recall_10"]
    assert list(matches["base"])[-len(added) :] == added
    assert matches["trained"]["bleu_4"]["value"] == pytest.approx(1)
    assert matches["trained"]["rouge_l"]["value"] == pytest.approx(1)
    assert matches["change"]["chair_i"]["value"] == 0
    assert matches["base"]["clip_score"]["value"] == pytest.approx(2.5)  # the prefix is words too
    change, base = matches["change"]["cider_d"], matches["base"]["cider_d"]
    trained = matches["trained"]["cider_d"]
    assert change["value"] == pytest.approx(trained["value"] - base["value"])
    assert matches["references"]["images"] == 7
    assert matches["references"]["clip"] == "embedded:b"
    assert matches["references"]["not_here"] == 1
    assert "meteor is left out: VIZER_METEOR_JAR does not name its jar." in matches["left_out"]
    assert rows[0]["references"] == []
    assert rows[1]["references"] == captions[run.ids[1]]
    for text in ("CIDEr-D", "CHAIR-i", "R@10 of all", "'z.png'", "meteor is left out"):
        assert text in message
    assert max(map(len, message.split("\nReferences")[0].splitlines())) <= 80


def test_a_wrong_reference_file_is_refused_before_anything_is_loaded(run, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(evaluate.load, "load_policy", None)  # not reached
    code = cli.main(
        ["evaluate", "--run", str(run.directory), "--no-controls", "--references", "gone.json"]
    )
    assert code == 2
    assert "reference file 'gone.json' not found" in capsys.readouterr().err


def test_every_metric_has_a_name_that_a_user_can_give():
    assert set(caption_metrics.ON_TOKENS) | set(caption_metrics.OFF) < set(caption_metrics.NAMES)
