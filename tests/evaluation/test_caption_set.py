"""Captions of image sets by the embedded policy: what is captioned, what is kept, what refused."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pyarrow.parquet
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from PIL import Image

import vizer_rl
from rewards.lib.chunks import caption_cosines
from vizer_rl import cli
from vizer_rl.config.run_dir import read_run
from vizer_rl.errors import UserError
from vizer_rl.evaluation import run_policy
from vizer_rl.evaluation.captioning import caption_set as captioning
from vizer_rl.evaluation.captioning import models, unsure_words
from vizer_rl.evaluation.captioning.caption_set import CaptionJob, caption_set
from vizer_rl.evaluation.captioning.pictures import find_pictures
from vizer_rl.policy import load
from vizer_rl.policy.captioner import Caption
from vizer_rl.policy.weights_hash import content_key
from vizer_rl.scoring import clip
from vizer_rl.training.best_of import BestOf, make_choose

from .captioned_run import TOKENS, draw_photos, write_run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Twenty photos, a run, and its policy, loaded once."""
    folder = tmp_path_factory.mktemp("place")
    truth = draw_photos(folder / "my photos", 20)
    directory = folder / "runs" / "mine"
    write_run(directory, folder / "my photos", truth)
    policy = run_policy.RunPolicy(read_run(directory), directory)
    images = [p.load() for p in find_pictures([folder / "my photos"]).rows]
    trained = policy.captions(images)
    with policy.before_training():
        base = policy.captions(images)
    return SimpleNamespace(
        folder=folder, photos=folder / "my photos", directory=directory, policy=policy,
        images=images, trained=[c.text for c in trained], base=[c.text for c in base], truth=truth,
    )  # fmt: skip


@pytest.fixture
def photos(place, tmp_path, monkeypatch):
    """A copy of the photos in an empty folder to work in; the policy is the one that is loaded."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place.photos, tmp_path / "my photos")
    monkeypatch.setattr(captioning, "load_captioner", lambda run, directory: place.policy)
    return tmp_path / "my photos"


@pytest.fixture
def captioned(place, monkeypatch):
    """The names of the images that the policy captions from here on, in batches."""
    batches, original = [], run_policy.RunPolicy.captions

    def captions(self, pictures, **sampling):
        batches.append(len(pictures))
        return original(self, pictures, **sampling)

    monkeypatch.setattr(run_policy.RunPolicy, "captions", captions)
    return batches


def job(place, photos, form, **more):
    return CaptionJob([photos], place.directory, form=form, **more)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def never(*_):
    raise AssertionError("nothing is left to load anything for")


def test_each_caption_has_its_score_and_its_doubts(place, photos, capsys):
    work = job(place, photos, "jsonl", base=True, certainty=True, doubtful=photos / "list.jsonl")
    caption_set(work, never)
    rows = lines(photos.parent / "captions.jsonl")
    names = sorted(place.truth)
    assert [r["image"] for r in rows] == names
    assert [r["caption"] for r in rows] == place.trained
    assert [r["base"] for r in rows] == place.base != place.trained
    scorer = clip.OpenClip("embedded:b", load.device())
    cosines = caption_cosines(scorer, names, place.images, place.trained).tolist()
    assert [r["score"] for r in rows] == pytest.approx(cosines, abs=1e-4)
    assert all(r["ended"] for r in rows)
    assert any(r["doubtful"] for r in rows)
    spans = [(r["caption"], w) for r in rows for w in [*r["doubtful"], *r["unsure"]]]
    assert all(text[w["start"] : w["end"]].lower() == w["word"] for text, w in spans)
    assert all(0 <= w["certainty"] < unsure_words.DIAL for r in rows for w in r["unsure"])
    listed = lines(photos / "list.jsonl")
    assert {r["image"] for r in rows if r["doubtful"] or r["unsure"]} <= {
        r["image"] for r in listed
    }
    counts = [sum("certainty" not in why for why in line["why"]) for line in listed]
    assert counts == sorted(counts, reverse=True)
    shown = " ".join(capsys.readouterr().out.split())
    assert "captioned: 20 in" in shown
    assert f"to look at: {len(listed)}, worst first, in" in shown


def test_what_is_done_is_not_done_again(place, photos, captioned, monkeypatch, capsys):
    work = job(place, photos, "jsonl", scorer="off")
    caption_set(work, never)
    path = photos.parent / "captions.jsonl"
    before, first = path.read_bytes(), [*captioned]
    assert sum(first) == 20
    with monkeypatch.context() as patch:
        patch.setattr(captioning, "load_captioner", never)
        caption_set(work, never)
    assert path.read_bytes() == before
    shutil.copy(photos / sorted(place.truth)[3], photos / "0new.png")
    (photos / "0bad.png").write_bytes(b"no image")
    caption_set(work, never)
    assert captioned == [*first, 1]
    assert path.read_bytes().startswith(before)
    assert lines(path)[-1]["image"] == "0new.png"
    assert lines(path)[-1]["caption"] == place.trained[3]
    left_out = lines(photos.parent / "captions.left_out.jsonl")
    assert [line["image"] for line in left_out] == ["0bad.png"]
    assert "left out: 1, listed in 'captions.left_out.jsonl'" in capsys.readouterr().out
    (photos / "0bad.png").unlink()
    caption_set(work, never)
    assert not (photos.parent / "captions.left_out.jsonl").exists()
    with pytest.raises(UserError, match=r"holds captions \(21\) of another policy, other settings"):
        caption_set(replace(work, prompt="What is it?"), never)


def test_sidecars_lie_beside_their_images_and_those_of_others_are_kept(
    place, photos, captioned, monkeypatch, capsys
):
    first, second, third = sorted(place.truth)[:3]
    mine = (photos / first).with_suffix(".txt")
    mine.write_text("my own words")
    Image.open(photos / second).save((photos / second).with_suffix(".jpg"))  # the same text file
    work = job(place, photos, "sidecar", scorer="off")
    caption_set(work, never)
    assert mine.read_text() == "my own words"
    assert (photos / third).with_suffix(".txt").read_text() == place.trained[2]
    left = [p.name for p in photos.iterdir() if p.suffix not in (".png", ".jpg", ".txt")]
    assert sorted(left)[1:] == ["captions.left_out.jsonl"]
    (line,) = lines(photos / "captions.left_out.jsonl")
    other = (photos / second).with_suffix(".jpg").name
    assert line["reason"] == f"'{second}' would have the text file of '{other}'."
    shown = " ".join(capsys.readouterr().out.split())
    assert "text files that were there and stay as they are: 1 (--overwrite" in shown
    (photos / third).with_suffix(".txt").unlink()
    with monkeypatch.context() as patch:  # the journal has it
        patch.setattr(captioning, "load_captioner", never)
        caption_set(work, never)
    assert (photos / third).with_suffix(".txt").read_text() == place.trained[2]
    (photos / third).with_suffix(".txt").write_text("corrected by hand")
    count = len(captioned)
    caption_set(work, never)
    assert len(captioned) == count
    assert (photos / third).with_suffix(".txt").read_text() == "corrected by hand"
    caption_set(replace(work, overwrite=True), never)
    assert captioned[count:] == [1]  # of mine alone: the other is in the journal
    assert mine.read_text() == place.trained[0]
    assert (photos / third).with_suffix(".txt").read_text() == place.trained[2]


def test_a_model_without_a_run_learns_its_classes_from_its_own_captions(place, photos, tmp_path):
    for name in sorted(place.truth)[12:]:
        (photos / name).unlink()
    model = replace(job(place, photos, "parquet"), run_directory=None, model="embedded")
    bare = run_policy.RunPolicy(model.run(), None)
    captioning_load, captioning.load_captioner = captioning.load_captioner, lambda *_: bare
    try:
        caption_set(replace(model, certainty=True, max_tokens=TOKENS), never)
    finally:
        captioning.load_captioner = captioning_load
    rows = pyarrow.parquet.read_table(tmp_path / "captions.parquet").to_pylist()
    assert [r["caption"] for r in rows] == place.base[:12]
    assert all(isinstance(r["doubtful"], list) and isinstance(r["unsure"], list) for r in rows)
    assert any(r["doubtful"] or r["unsure"] for r in rows)
    assert all(0 < r["score"] < 1 for r in rows)


def test_a_caption_of_half_a_character_is_written_and_read(place, photos, monkeypatch):
    odd = [Caption("a \ud800\x1b[2J\u2028 circle", [])]
    monkeypatch.setattr(run_policy.RunPolicy, "captions", lambda self, images: odd * len(images))
    work = job(place, photos, "sidecar", scorer="off")
    caption_set(work, never)
    caption_set(job(place, photos, "jsonl", scorer="off"), never)
    rows = lines(photos.parent / "captions.jsonl")
    assert {(r["caption"], r["ended"]) for r in rows} == {("a ?\x1b[2J\u2028 circle", False)}
    assert len({*photos.glob("*.txt")}) == 20
    monkeypatch.setattr(captioning, "load_captioner", never)
    caption_set(work, never)


def test_not_one_usable_image_is_an_error_and_leaves_nothing(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(captioning, "load_captioner", lambda run, directory: place.policy)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"not one of 1 images can be used.*empty file"):
        caption_set(job(place, tmp_path / "bad", "csv", scorer="off"), never)
    assert [p.name for p in tmp_path.iterdir()] == ["bad"]


# The best of n


class Graded:
    """Rewards of words: the number of letters; a caption that starts with "no" fails the gate."""

    def __init__(self):
        self.rewards = [SimpleNamespace(weight=2.0), SimpleNamespace(weight=1.0)]
        self.gates_K = torch.tensor([False, True])

    def batch(self, ids, images, captions, completion_ids):
        self.ids = ids
        return captions

    def scores(self, captions):
        gate = [-1.0 if c.startswith("no") else 0.0 for c in captions]
        length = [None if g else float(len(c)) for c, g in zip(captions, gate, strict=True)]
        return {"length": length, "gate": gate}


@pytest.mark.parametrize("normalised", [True, False])
def test_the_best_of_n_is_what_the_rewards_rank_first(normalised):
    functions, groups = Graded(), [["abc", "abcd", "no, never"], ["no", "a", "no way"]]
    candidates = [[Caption(text, [1]) for text in group] for group in groups]
    best = BestOf(functions, 3, normalised)(["x", "y"], [None, None], candidates)
    assert best == [1, 1]
    assert functions.ids == ["to-caption:x"] * 3 + ["to-caption:y"] * 3


def test_the_best_of_n_by_the_runs_own_rewards(place, photos, capsys):
    work = job(place, photos, "jsonl", best_of=4, scorer="off")
    caption_set(work, make_choose)
    rows = lines(photos.parent / "captions.jsonl")
    assert len(rows) == 20
    assert all(3 <= len(r["caption"].split()) <= 20 and r["ended"] for r in rows)
    again = replace(work, to=photos.parent / "again.jsonl")
    caption_set(again, make_choose)
    assert lines(photos.parent / "again.jsonl") == rows  # sampled by the batch, not by the clock


def test_a_run_whose_images_moved_has_no_rewards_but_captions(place, photos, monkeypatch):
    run = read_run(place.directory)
    moved = run.model_copy(update={"data": run.data.model_copy(update={"images": "/gone/photos"})})
    work = job(place, photos, "jsonl", best_of=2, rewards=moved, scorer="off")
    with pytest.raises(UserError, match=r"prepare themselves on its images, and .*gone.*--rewards"):
        caption_set(work, never)
    assert not (photos.parent / "captions.jsonl").exists()


# What is refused


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("jsonl", "captions.jsonl"),
        ("csv", "captions.csv"),
        ("csv", ".captions.csv.journal"),
        ("csv", "captions.left_out.jsonl"),
    ],
)
def test_the_list_is_no_file_of_the_captions(place, photos, form, name, monkeypatch):
    monkeypatch.setattr(captioning, "load_captioner", never)
    work = job(place, photos, form, doubtful=photos.parent / name, overwrite=True)
    with pytest.raises(UserError, match="is a file that --out writes itself"):
        caption_set(work, never)
    assert [p.name for p in photos.parent.iterdir()] == ["my photos"]


def test_the_key_of_a_folder_changes_with_its_weights(place, tmp_path):
    run = read_run(place.directory)
    policy = run.policy.model_copy(update={"model": str(tmp_path)})
    mine = run.model_copy(update={"policy": policy})
    keys = []
    for content in ("old", "longer"):
        (tmp_path / "model.safetensors").write_text(content)
        keys.append(models.captions_key(mine, None))
        assert models.captions_key(mine, None) == keys[-1]
    assert keys[0] != keys[1]


def test_an_adapter_of_other_weights_is_refused(place, tmp_path, monkeypatch):
    directory = tmp_path / "runs" / "other"
    shutil.copytree(place.directory, directory)
    run, key = read_run(directory), content_key(place.policy.model, place.policy.processor)
    any_type = run.model_copy(update={"policy": run.policy.model_copy(update={"dtype": "auto"})})
    monkeypatch.setattr(models, "RunPolicy", lambda run, directory: place.policy)

    def environment(settings=run, **content):
        (directory / "environment.json").write_text(json.dumps(content))
        return models.load_captioner(settings, directory)

    plain, processor = load.load_policy("smolvlm", "embedded", dtype="float32")
    assert content_key(plain, processor) == key  # an adapter inside changes nothing
    assert environment(policy_hash=key) is place.policy
    assert environment(policy_hash="0" * 16, transformers="4.0") is place.policy
    now = {"transformers": models.version("transformers"), "device": "cpu"}
    other = {**now, "device": "a GPU"}
    if load.device().type != "cpu":
        now, other = other, now
    assert environment(any_type, policy_hash="0" * 16, **other) is place.policy
    for settings, where in ((any_type, now), (run, now), (run, other)):
        with pytest.raises(UserError, match="was trained on other weights than those of policy"):
            environment(settings, policy_hash="0" * 16, **where)
    with pytest.raises(UserError, match="was trained on other weights than those of policy"):
        vizer_rl.Captioner.from_run(directory)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RepositoryNotFoundError, "neither a folder nor a model on the Hugging Face hub"),
        (GatedRepoError, "is gated: ask for access at https://huggingface.co/org/model"),
    ],
)
def test_a_hub_id_that_cannot_be_had_is_one_sentence(
    error, message, photos, monkeypatch, capsys, tmp_path
):
    def missing(source):
        response = SimpleNamespace(headers={}, request=None, status_code=404)
        raise OSError("no") from error("no", response=response)

    monkeypatch.setattr(load.PreTrainedConfig, "get_config_dict", missing)
    before = sorted(tmp_path.rglob("*"))
    words = ["caption", str(photos), "--model", "org/model", "--out", "sidecar"]
    assert cli.main(words) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_of_no_family_and_a_folder_that_is_none_are_named(photos, tmp_path, capsys):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "idefics4"}')
    (tmp_path / "clip" / "processor_config.json").write_text("{}")
    for name, message in (("clip", "nearest: idefics3"), ("clop", "nearest: ")):
        words = ["caption", str(photos), "--model", f"{tmp_path / name}", "--out", "csv"]
        assert cli.main(words) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "embedded", "--out", "jsonl", "--base"], "--base: a model without a run"),
        (["--model", "embedded", "--out", "csv", "--best-of", "4"], "needs --rewards RUN.yaml"),
        (["--model", "embedded", "--out", "csv", "--scorer", "embedded:c"], "nearest: embedded:"),
        (
            ["--model", "embedded", "--out", "csv", "--scorer", "off", "--doubtful", "x.jsonl"],
            "--doubtful needs a held-out scorer",
        ),
    ],
)
def test_what_does_not_fit_together_is_one_sentence(words, message, photos, capsys):
    assert cli.main(["caption", str(photos), *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.png"], "one of the arguments --run --model is required"),
        (["a.png", "--run", "x", "--model", "y"], "not allowed with argument --run"),
        (["a.png", "--run", "x", "--out", "metadata"], "nearest: metadata.jsonl"),
        (["a.png", "--run", "x", "--to", "y"], "--to needs --out: sidecar, jsonl"),
        (["a.png", "--run", "x", "--rewards", "y"], "--rewards needs --best-of"),
        (["a.png", "--run", "x", "--best-of", "1"], "need at least 2"),
        (["a.png", "--run", "x", "--max-tokens", "0"], "need at least 1"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(words, message, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["caption", *words])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_captions_of_a_model_are_printed_with_marks(place, photos, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for name in sorted(place.truth)[10:]:
        (photos / name).unlink()
    words = ["--run", str(place.directory), "--prompt", "Describe the image."]
    assert cli.main(["caption", str(photos), *words]) == 0
    shown = capsys.readouterr().out
    assert "doubtful, by the held-out scorer" in shown
    assert all(name in shown for name in sorted(place.truth)[:10])
    assert sorted(p.name for p in photos.parent.iterdir()) == [".drawn-1000000-20", "my photos"][1:]
