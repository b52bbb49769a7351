"""The table of ViZer's paper on stand-ins in the formats of COCO, Karpathy's split and CC3M."""

import json
import subprocess
from argparse import Namespace

import pytest
from PIL import Image

from experiments import paper, runner
from vizer_rl import cli
from vizer_rl.data import caption_file
from vizer_rl.data import scenes as draw

from ..conftest import TINY

TEST, TRAIN, EACH = 12, 40, 5  # images, captions of each


def as_photo(path, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.open(path).convert("RGB").save(target, quality=95)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """COCO 2014, Karpathy's dataset_coco.json, CC3M as img2dataset leaves it: drawn scenes."""
    root = tmp_path_factory.mktemp("paper")
    images = draw.write(root / "drawn", 0, TEST + TRAIN)
    truth = json.loads(draw.truth_of(images).read_text())
    coco, cc3m, split, training = (
        root / "coco",
        root / "cc3m",
        [],
        {"images": [], "annotations": []},
    )
    for number, name in enumerate(sorted(truth), 1):
        test = number <= TEST
        folder = "val2014" if test else "train2014"
        filename = f"COCO_{folder}_{number:012d}.jpg"
        captions = [truth[name]["caption"].capitalize() + "."] * EACH
        sentences = [{"raw": text, "tokens": text.lower().split()} for text in captions]
        kind = "test" if test else "train"
        row = {"filepath": folder, "filename": filename, "cocoid": number, "imgid": number}
        split.append({**row, "split": kind, "sentences": sentences})
        as_photo(images / name, coco / folder / filename)
        if test:
            shard = cc3m / "00000" / f"{number:09d}.jpg"
            as_photo(images / name, shard)
            shard.with_suffix(".txt").write_text(captions[0])
            shard.with_suffix(".json").write_text(json.dumps({"caption": captions[0]}))
        else:
            training["images"].append({"id": number, "file_name": filename})
            training["annotations"] += [{"image_id": number, "caption": text} for text in captions]
    (coco / "annotations").mkdir()
    (coco / "annotations" / "captions_train2014.json").write_text(json.dumps(training))
    (root / "dataset_coco.json").write_text(json.dumps({"images": split, "dataset": "coco"}))
    return Namespace(
        **{"images": coco / "train2014", "coco": coco, "karpathy": root / "dataset_coco.json"},
        **{"cc3m": cc3m, "family": ["smolvlm"], "profile": "scenes", "clip": "embedded:b"},
        **{"set": [], "limit": None},
    )


def test_the_sets_are_the_test_split_and_the_images_alone(stand_ins, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paper.prepare_coco(stand_ins.karpathy, stand_ins.coco)
    paper.prepare_coco(stand_ins.karpathy, stand_ins.coco)  # as a second call does
    paper.prepare_cc3m(stand_ins.cc3m, 10)
    names = {path.name for path in (paper.DATA / "coco").iterdir()}
    references = json.loads((paper.DATA / "coco" / "references.json").read_text())
    assert names == {*references, "references.json"}
    assert len(references) == TEST
    assert all(len(captions) == EACH for captions in references.values())
    files = sorted((paper.DATA / "cc3m").iterdir())
    assert len(files) == 10
    assert files[0].name.startswith("00000-0000000")
    assert all(Image.open(path).size for path in files)


def test_pairs_for_vizer_gt_are_a_caption_file(stand_ins, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paper.prepare_pairs(stand_ins.coco)
    ids = sorted(path.name for path in stand_ins.images.iterdir())
    captions = caption_file.read(paper.DATA / "coco-train.jsonl", ids)
    assert sorted(captions) == ids
    assert len(ids) == TRAIN


def estimates(value, metrics):
    return {m: {"value": value, "low": value - 0.1, "high": value + 0.1} for m in metrics}


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Stands in for `vizer-rl`: the words of each call, which the command line must accept."""
    calls = []

    def command(*words):
        args = cli.parse(words)
        calls.append(words)
        if words[0] == "train":
            name = next(w for w in words if w.startswith("name=")).removeprefix("name=")
            if name == "paper-smolvlm-vizer-g":
                raise subprocess.CalledProcessError(2, words)
            target = tmp_path / "runs" / name
            content = {}
        else:
            target = tmp_path / "runs" / args.run / f"images-{args.images.rpartition('/')[2]}"
            metrics = ("bleu_1", "cider_d", "clip_score")
            content = {"base": estimates(0.5, metrics), "trained": estimates(0.7, metrics)}
        target.mkdir(parents=True)
        (target / "eval.json").write_text(json.dumps(content))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "command", command)
    return calls


def test_what_is_missing_is_made_once_and_what_fails_is_named(stand_ins, commands):
    rows = ["RL baseline", "ViZer_G", "ViZer_GT"]
    assert paper.make(stand_ins, rows) == ["SmolVLM-Base, ViZer_G: ended with code 2"]
    assert [words[0] for words in commands] == [
        *("train", "evaluate", "evaluate", "train", "train", "evaluate", "evaluate")
    ]
    given = commands[4]
    assert f"data.images={stand_ins.coco / 'train2014'}" in given
    assert {"algorithm=vizer", "mapper.source=captions"} < {*given}
    assert "--metrics" in commands[1]
    assert commands[1][-3:] == ("bleu", "cider_d", "clip_score")
    paper.make(stand_ins, rows)
    assert len(commands) == 8  # the failed one again


def test_the_table_tells_quoted_from_measured(stand_ins, commands):
    paper.make(stand_ins, ["RL baseline"])
    lines = paper.table(["smolvlm", "qwen2vl"]).splitlines()
    assert lines[2].startswith(
        "| Base | SmolVLM-Base | quoted | 0.3784 | 0.276 | 0.2529 | 0.2617 |"
    )
    cells = "0.5000 [0.4000, 0.6000] | 0.5000 [0.4000, 0.6000] | 0.2000 [0.1600, 0.2400]"
    assert lines[3].startswith(f"| Base | SmolVLM-Base | measured | {cells} |")
    assert [line.split(" | ")[2] for line in lines[2:6]] == ["quoted", "measured"] * 2
    assert sum("quoted" in line for line in lines) == len(paper.PUBLISHED)
    assert "its CLIP is not named" in lines[-1]


def test_without_data_it_says_what_is_missing_and_quotes(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coco").mkdir()
    words = ["paper", "--coco", "cocoo", "--profile", "scenes"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as left:
        paper.main()
    assert "IMAGES=PATH (--images) is not given" in left.value.code
    assert "'cocoo' not found; nearest: coco" in left.value.code
    assert capsys.readouterr().out.count("quoted") == len(paper.PUBLISHED)
    monkeypatch.setattr("sys.argv", [*words[:1], "--table"])
    paper.main()


def test_test_images_that_are_not_there_are_counted(stand_ins, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"{TEST} of {TEST} test images"):
        paper.prepare_coco(stand_ins.karpathy, tmp_path)


@pytest.mark.slow
def test_the_protocol_from_images_to_the_table(stand_ins, workplace, monkeypatch):
    """The real commands, with the models that ship: 2 steps of ours and of ViZer_GT."""
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(runner, "command", lambda *words: cli.main(words) and pytest.fail(words[0]))
    tiny = [word for word in TINY if not word.startswith(("profile", "rewards"))]
    flags = Namespace(**{**vars(stand_ins), "set": [*tiny, "monitor.images=2", "data.heldout=2"]})
    assert paper.make(flags, ["GRPO, ours", "ViZer_GT"]) == []
    rows = [row for row in paper.table(["smolvlm"]).splitlines() if "measured" in row]
    assert [row.split(" | ")[0] for row in rows] == ["| Base", "| ViZer_GT", "| GRPO, ours"]
