"""Evaluation of a run: paired metrics worked out by hand, the files and the print-out."""

import io
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console

from rewards.lib.chunks import caption_cosines
from vizer_rl import cli
from vizer_rl.config.schema import Engine, Policy, Run, Scorer
from vizer_rl.data import scenes as draw
from vizer_rl.errors import ImageError, UserError
from vizer_rl.evaluation import evaluate, marks, run_policy, tables
from vizer_rl.evaluation.against_controls import Control, Controls
from vizer_rl.evaluation.before_after import Pair, summary
from vizer_rl.evaluation.caption_images import caption
from vizer_rl.evaluation.captioning import batches
from vizer_rl.evaluation.metrics import scene_facts
from vizer_rl.policy import captioner, load
from vizer_rl.scoring import clip

FACTS = ["fact_f1", "fact_precision", "fact_recall", "hallucination_rate"]
ALWAYS = ["mean_length", "heldout_score", "retrieval_1", "retrieval_5"]
ALWAYS += ["repetition", "visual_dependence", "doubtful_rate"]
VAGUE = "a red circle"


def circle(**other):
    stored = {"shape": "circle", "colour": "red", "size": "large", "fill": "solid"}
    return {"objects": [{**stored, "x": 48, "y": 48, "r": 19, **other}], "relation": None}


def test_change_is_paired_image_by_image():
    rng = np.random.default_rng(0)
    cosines = rng.normal(0.3, 0.2, 200)
    matches = summary([Pair(str(i), "a", "a b", c, c + 0.01) for i, c in enumerate(cosines)])
    base, change = matches["base"]["heldout_score"], matches["change"]["heldout_score"]
    assert base["high"] - base["low"] > 0.04  # unpaired, .01 would drown in this
    assert list(change.values()) == pytest.approx([0.01] * 3)
    assert matches["change"]["mean_length"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_fact_columns_by_hand():
    captions = ["a large solid red circle", "a circle", "a blue circle", ""]
    columns = scene_facts.columns(captions, [circle()] * 4)
    assert columns["fact_precision"].tolist() == [1, 1, 0.5, 0]
    assert columns["fact_recall"].tolist() == [1, 0.25, 0.25, 0]
    assert columns["fact_f1"] == pytest.approx([1, 0.4, 1 / 3, 0])
    assert columns["hallucination_rate"].tolist() == [0, 0, 1, 0]


def test_recall_by_kind_by_hand_and_none_where_there_is_no_such_fact():
    output = scene_facts.recall_by_kind(
        ["a red circle", "a star"], [circle(), circle(size="small")]
    )
    assert output == {
        "object": 0.5,
        "colour": 0.5,
        "size": 0.0,
        "fill": 0.0,
        "count": None,
        "relation": None,
    }


class Toy(torch.nn.Module):
    """Stands for the policy: its output tells whether the adapter is on."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.zeros_(self.layer.weight)

    def forward(self, x):
        return self.layer(x)


class Reads:
    """Stands for the policy before training: an image makes each token .5 nats likelier."""

    def __init__(self, model, processor, source, **settings):
        assert (processor, source) == ("processor", "embedded")

    def log_probs(self, captions, images, view):
        assert len(captions) == len(images)
        return [
            torch.full((len(c.split()),), {"image": -1.0, "blank": -1.5}[view]) for c in captions
        ]

    def tokens(self, caption):
        return [f" {word}" for word in caption.split()]

    def word_probs(self, captions, places, images):
        """Sure of each word but "orange", of which it is with .3."""
        return [
            [torch.tensor([0.3 if p.word == "orange" else 0.9, 0.1]) for p in row] for row in places
        ]


class Scores:
    """Stands for the held-out scorer: 1 for captions of more than four words, else .6."""

    def __init__(self, name, device, opening):
        assert (name, opening) == ("embedded:b", "")

    def image_features(self, ids, images):
        assert len(ids) == len(images)
        return torch.tensor([[1.0, 0.0]]).repeat(len(ids), 1)

    def text_features(self, captions):
        return torch.tensor([[1.0, 0.0] if len(c.split()) > 4 else [0.6, 0.8] for c in captions])


class Solid(Scores):
    """A held-out scorer that likes no stripes."""

    def text_features(self, captions):
        return torch.tensor([[0.6, 0.8] if "striped" in c else [1.0, 0.0] for c in captions])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run on eight drawn scenes; VAGUE turned into the true captions, but for image 0."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    images = draw.write(tmp_path / "held", 1_000_000, 8)
    truth = images.parent / "truth" / "scenes.json"
    ids = sorted(p.name for p in images.iterdir())
    stored = json.loads(truth.read_text())
    says = {evaluate.ImageFolder("", images, [], {}).load(i).tobytes(): stored[i] for i in ids[1:]}

    def say(model, processor, pictures, prompt, *, max_new_tokens, vision_cache):
        assert vision_cache is None
        assert (processor, prompt, max_new_tokens) == ("processor", "Describe the image.", 24)
        adapted = bool(model(torch.ones(1, 2)).any())
        pixels = [picture.tobytes() for picture in pictures]
        output = [says[p]["caption"] if adapted and p in says else VAGUE for p in pixels]
        return [SimpleNamespace(text=text) for text in output]

    monkeypatch.setattr(load, "load_policy", lambda *_, **__: (Toy(), "processor"))
    monkeypatch.setattr(captioner, "caption", say)
    monkeypatch.setattr(clip, "OpenClip", Scores)
    monkeypatch.setattr(run_policy, "ReferencePolicy", Reads)
    monkeypatch.setattr(run_policy, "IMAGE_BATCH", 3)
    monkeypatch.setattr(batches, "CPU_IMAGES", 3)
    directory = tmp_path / "runs" / "mine"
    lora = LoraConfig(target_modules=["layer"], init_lora_weights=False)
    get_peft_model(Toy(), lora).save_pretrained(str(directory / "adapter"))
    settings = Run(
        family="smolvlm",
        profile="scenes",
        name="mine",
        policy=Policy(model="embedded"),
        scorer=Scorer(train="embedded:a", heldout="embedded:b"),
        rewards={},
        train={"max_completion_length": 24},
        engine=Engine(shared_prefix="off"),
    )
    (directory / "config.yaml").write_text(settings.to_yaml())
    held_out(directory, images, ids, truth)
    return SimpleNamespace(directory=directory, images=images, ids=ids, truth=truth, stored=stored)


def held_out(directory, images, ids, truth):
    about = {"source": str(images), "ids": ids, "drawn": bool(truth)}
    (directory / "heldout.json").write_text(json.dumps(about))


def test_a_caption_of_two_sentences_is_scored_by_both():
    scorer = Scores("embedded:b", None, "")
    captions = ["a red circle. a very large solid star.", "a red circle"]
    cosines = caption_cosines(scorer, ["x", "y"], [None, None], captions)
    assert cosines.tolist() == pytest.approx([(3 * 0.6 + 5 * 1.0) / 8, 0.6])


def results(directory):
    lines = (directory / "captions.jsonl").read_text().splitlines()
    return json.loads((directory / "eval.json").read_text()), [json.loads(line) for line in lines]


def narrow(message):
    """The lines that hold no path."""
    wide = ("Run directory: ", "Report: ", "Not in the report of ")
    return [line for line in message.splitlines() if not line.startswith(wide)]


def test_files_of_an_evaluation_on_scenes(run):
    evaluate.evaluate(run.directory)
    matches, rows = results(run.directory)
    sides = ["base", "trained", "change"]
    more = ["diversity", "left_out"]
    assert list(matches) == ["version", "n_images", *sides, "by_kind", "truth_mean_length", *more]
    assert matches["n_images"] == 8
    assert matches["left_out"] == []
    assert matches["diversity"]["base"] == {
        "distinct_2": 2 / 16,
        "vocabulary": 3,
        "unique_captions": 1 / 8,
    }
    assert matches["trained"]["visual_dependence"]["value"] == pytest.approx(0.5)
    for side in sides:
        assert list(matches[side]) == FACTS + ALWAYS
        assert all(list(e) == ["value", "low", "high"] for e in matches[side].values())
        assert all(e["low"] <= e["value"] <= e["high"] for e in matches[side].values())
    truths = [run.stored[i]["caption"] for i in run.ids]
    lengths = [3, *(len(t.split()) for t in truths[1:])]
    assert matches["trained"]["mean_length"]["value"] == pytest.approx(np.mean(lengths))
    assert matches["truth_mean_length"] == np.mean([len(t.split()) for t in truths])
    assert matches["trained"]["fact_f1"]["value"] >= 7 / 8
    assert matches["base"]["heldout_score"]["value"] == pytest.approx(0.6)
    assert matches["change"]["heldout_score"]["value"] == pytest.approx(0.4 * 7 / 8)
    assert rows == [
        {
            "image_id": image_id,
            "base": VAGUE,
            "trained": true if image_id != run.ids[0] else VAGUE,
            "truth": true,
            "base_score": pytest.approx(0.6),
            "trained_score": pytest.approx(1.0 if image_id != run.ids[0] else 0.6),
            "base_doubtful": [],
            "trained_doubtful": [],
        }
        for image_id, true in zip(run.ids, truths, strict=True)
    ]


def test_print_out_tells_the_numbers_in_80_columns(run, capsys):
    evaluate.evaluate(run.directory)
    message = capsys.readouterr().out
    change = json.loads((run.directory / "eval.json").read_text())["change"]["fact_f1"]
    output = [f"{change[key]:+.3f}".replace("0.", ".") for key in ("value", "low", "high")]
    assert "{} [{}, {}]".format(*output) in message
    assert "8 held-out images" in message
    assert "1.00 [1.00, 1.00]" in message  # every base caption hallucinates
    assert "relation" in message
    shown = [image_id for image_id in run.ids if image_id in message]
    assert shown == run.ids[1:5]  # the first four whose caption changed: not image 0
    assert f"Run directory: {run.directory}" in message
    assert max(map(len, narrow(message))) <= 80


@pytest.mark.parametrize(
    ("share", "words"), [(0.4771, 9.44), (-0.1234, -12.34), (-1.0, -102.4), (math.nan, 0.0)]
)
def test_every_metric_is_one_line_of_80_columns_however_wide_its_numbers(share, words):
    stored = dict.fromkeys(tables.LABELS, dict.fromkeys(("value", "low", "high"), share))
    stored["mean_length"] = dict.fromkeys(("value", "low", "high"), words)
    result = dict.fromkeys(tables.SIDES, stored)
    console = Console(width=80, file=io.StringIO(), markup=False, highlight=False)
    tables.print_evaluation(console, {"n_images": 8, **result}, [])
    lines = console.file.getvalue().splitlines()
    rows = [line for line in lines if line.count("]") == 3]
    assert [row[:14].strip() for row in rows] == list(tables.LABELS.values())
    assert (
        len(lines) == len(rows) + 6
    )  # the title and the closing words, the table's two head lines
    assert max(map(len, lines)) <= 80


def test_users_photos_get_the_label_free_metrics_and_broken_ones_are_left_out(run, capsys):
    (run.images / "0.png").write_bytes(b"")
    held_out(run.directory, run.images, ["0.png", *run.ids, "gone.png"], None)
    evaluate.evaluate(run.directory)
    matches, rows = results(run.directory)
    keys = ["version", "n_images", "base", "trained", "change", "diversity", "left_out"]
    assert list(matches) == keys
    assert matches["n_images"] == len(rows) == 8
    assert matches["left_out"] == ["2 of 10 images cannot be used."]
    assert list(matches["change"]) == ALWAYS
    keys = ["image_id", "base", "trained", "base_score", "trained_score"]
    keys += ["base_doubtful", "trained_doubtful"]
    assert all(list(row) == keys for row in rows)
    message = capsys.readouterr().out
    assert message.count("Left out: Cannot use image") == 2
    assert "2 of 10 images cannot be used." in message
    assert "F1" not in message
    assert "truth" not in message


def test_truth_that_is_gone_is_said_in_one_sentence(run, capsys):
    run.truth.unlink()
    evaluate.evaluate(run.directory)
    matches, _ = results(run.directory)
    assert list(matches["base"]) == ALWAYS
    assert matches["left_out"] == [f"Facts are not scored, because {run.truth} is not there."]
    assert f"Facts are not scored, because {run.truth} is not there." in capsys.readouterr().out


def test_other_images_are_judged_without_truth_beside_the_run(run, tmp_path, capsys):
    folder = tmp_path / "my photos"
    folder.mkdir()
    for image_id in run.ids[:3]:
        (folder / image_id).write_bytes((run.images / image_id).read_bytes())
    (folder / "bad.png").write_bytes(b"no image")
    evaluate.evaluate(run.directory, str(folder))
    matches, rows = results(run.directory / "images-my-photos")
    assert matches["n_images"] == len(rows) == 3
    assert list(matches["base"]) == ALWAYS
    assert matches["left_out"] == ["1 files cannot be used."]
    assert not (run.directory / "eval.json").exists()
    assert f"Left out: {folder / 'bad.png'}: " in capsys.readouterr().out
    (folder / "one").mkdir()
    (folder / "one" / "a.png").write_bytes((run.images / run.ids[0]).read_bytes())
    evaluate.evaluate(run.directory, str(folder / "one"))
    matches, _ = results(run.directory / "images-one")
    assert list(matches["base"]) == [name for name in ALWAYS if "retrieval" not in name]
    assert matches["left_out"] == ["Retrieval: a single image has no look-alike."]
    with pytest.raises(ImageError, match=r"No usable image in '.*adapter'"):
        evaluate.evaluate(run.directory, str(run.directory / "adapter"))


def test_doubtful_words_are_stored_and_marked_everywhere(run, capsys, monkeypatch):
    monkeypatch.setattr(clip, "OpenClip", Solid)
    evaluate.evaluate(run.directory)
    matches, rows = results(run.directory)
    for row in rows:
        striped = [
            i for i in range(len(row["trained"])) if row["trained"][i:].startswith("striped")
        ]
        assert row["trained_doubtful"] == [
            {"start": i, "end": i + 7, "word": "striped", "instead": "solid"}
            for i in striped
            if row["trained"].count("striped") == 1  # two: no single swap helps this scorer
        ]
        assert row["base_doubtful"] == []
    share = sum(bool(row["trained_doubtful"]) for row in rows) / 8
    assert matches["trained"]["doubtful_rate"]["value"] == share > 0
    shown = capsys.readouterr().out
    assert "a large *striped* orange circle" in shown
    assert tables.LEGEND in shown
    caption(run.directory, [run.images / run.ids[4]])
    shown = " ".join(capsys.readouterr().out.split())
    assert "a large *striped* orange~.30 circle" in shown
    assert tables.LEGEND in shown
    assert marks.unsure_legend(0.8) in shown


def test_captions_are_printed_without_marks_where_none_can_be_made(run, capsys, monkeypatch):
    caption(run.directory, [run.images / run.ids[4]])
    shown = capsys.readouterr().out
    missing = run.directory / "captions.jsonl"
    assert f"Doubtful words are not marked: '{missing}' cannot be read" in shown
    missing.write_text('{"base": "a", "trained": "b"}\n{"base": "a", "tra')
    caption(run.directory, [run.images / run.ids[4]])
    shown = capsys.readouterr().out
    assert f"Doubtful words are not marked: '{missing}' cannot be used: line 2: " in shown
    assert "a large striped orange circle" in " ".join(shown.split())


def test_controls_stand_beside_the_run_with_a_verdict(run, capsys):
    def controls(settings, images, captions):
        assert settings.name == "mine"
        assert images.ids == run.ids
        assert captions["base"] == [VAGUE] * 8
        assert captions["trained"][1] == run.stored[run.ids[1]]["caption"]
        rows = {
            "best_prompt": Control([VAGUE] * 8, "greedy"),
            "best_of_8": Control(["a red circle above it"] * 8, "the best"),
        }
        return Controls(rows, {"base": [{"sum": 1.0}] * 8, "trained": [{"sum": None}] * 8})

    evaluate.evaluate(run.directory, controls=controls)
    matches, rows = results(run.directory)
    assert matches["how"] == {"best_prompt": "greedy", "best_of_8": "the best"}
    for key in ("controls", "over_controls"):
        assert list(matches[key]) == ["best_prompt", "best_of_8"]
        assert all(list(row) == FACTS + ALWAYS for row in matches[key].values())
    assert matches["controls"]["best_prompt"] == matches["base"]
    assert matches["over_controls"]["best_prompt"] == matches["change"]
    assert list(matches["diversity"]) == ["base", "trained", "best_prompt", "best_of_8"]
    assert (rows[0]["base_rewards"], rows[0]["trained_rewards"]) == ({"sum": 1.0}, {"sum": None})
    expected = {"caption": VAGUE, "score": pytest.approx(0.6), "doubtful": []}
    assert rows[0]["controls"]["best_prompt"] == expected
    assert {test["control"] for test in matches["verdict"]["tests"]} == {"best_of_8"}
    shown = capsys.readouterr().out
    for sentence in matches["verdict"]["sentences"]:
        assert sentence in " ".join(shown.split())
    assert max(map(len, narrow(shown))) <= 80


def test_the_page_of_a_run_is_that_of_its_last_evaluation(run, tmp_path):
    page = run.directory / "report.html"
    evaluate.evaluate(run.directory)
    assert "BLEU-4" not in page.read_text()
    file = tmp_path / "references.json"
    file.write_text(json.dumps({i: [run.stored[i]["caption"]] for i in run.ids}))
    evaluate.evaluate(run.directory, references=[file])
    text = page.read_text()
    assert "BLEU-4" in text
    assert "8 held-out images" in text


def test_other_images_have_a_page_of_their_own(run, tmp_path, capsys):
    folder = tmp_path / "my photos"
    folder.mkdir()
    for image_id in run.ids[:3]:
        (folder / image_id).write_bytes((run.images / image_id).read_bytes())
    evaluate.evaluate(run.directory, str(folder))
    target = run.directory / "images-my-photos"
    assert json.loads((target / "heldout.json").read_text()) == {
        "source": str(folder),
        "ids": run.ids[:3],
        "drawn": False,
    }
    assert not (run.directory / "report.html").exists()
    text = (target / "report.html").read_text()
    for part in (
        "<h1>mine on my-photos</h1>",
        "3 images, 95",
        "Settings of mine on my-photos",
        f"evaluate --run mine --images &#x27;{folder}&#x27;",
    ):
        assert part in text, part
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert len(data["pictures"]) == 3
    message = capsys.readouterr().out
    assert "Before and after, on 3 images (" in message
    assert f"Report: {target / 'report.html'}" in message
    (target / "report.html").unlink()
    assert not cli.main(["report", "--run", str(target)])
    assert (target / "report.html").read_text() == text
    evaluate.evaluate(run.directory)
    assert not cli.main(["report", "--run", str(run.directory), "--run", str(target)])
    assert (run.directory / "report-with-mine-on-my-photos.html").is_file()


def test_a_run_that_is_called_like_a_folder_of_images_keeps_its_own_list(run):
    directory = run.directory.rename(run.directory.with_name("images-mine"))
    before = (directory / "heldout.json").read_text()
    evaluate.evaluate(directory)
    assert (directory / "heldout.json").read_text() == before
    assert "<h1>images-mine</h1>" in (directory / "report.html").read_text()


def test_rewards_of_the_captions_stand_beside_them_or_why_not(run, capsys):
    def rewards(policy, images, captions):
        assert policy.run.name == "mine"
        assert images.ids == run.ids
        return {row: [{"sum": float(len(t))} for t in texts] for row, texts in captions.items()}

    evaluate.evaluate(run.directory, rewards=rewards)
    _, rows = results(run.directory)
    assert all(row["base_rewards"] == {"sum": float(len(row["base"]))} for row in rows)
    assert all(row["trained_rewards"] == {"sum": float(len(row["trained"]))} for row in rows)

    def gone(*_):
        raise UserError("data.images is not there")

    evaluate.evaluate(run.directory, rewards=gone)
    matches, rows = results(run.directory)
    assert matches["left_out"] == ["Rewards of the captions: data.images is not there."]
    assert matches["left_out"][0] in capsys.readouterr().out
    assert "base_rewards" not in rows[0]

    def bug(*_):
        raise KeyError("of ours")

    with pytest.raises(KeyError):
        evaluate.evaluate(run.directory, rewards=bug)


def test_truth_of_other_scenes_is_an_error(run):
    held_out(run.directory, run.images, [*run.ids, "9999999.png"], run.truth)
    with pytest.raises(UserError, match=r"lacks 1 held-out scenes, the first: 9999999\.png"):
        evaluate.evaluate(run.directory)


def test_no_usable_image_is_an_error(run):
    held_out(run.directory, run.images, ["gone.png"], None)
    with pytest.raises(UserError, match="not one of 1 images"):
        evaluate.evaluate(run.directory)


def test_a_reward_file_that_is_gone_is_said_in_one_sentence(run):
    settings = (run.directory / "config.yaml").read_text()
    gone = settings.replace("rewards: {}", "rewards: {gone.py: {weight: 1.0}}")
    assert gone != settings
    (run.directory / "config.yaml").write_text(gone)
    sentence = "rewards of run 'mine': reward file gone.py does not exist"
    with pytest.raises(UserError, match=sentence):
        evaluate.evaluate(run.directory)


def test_caption_shows_both_as_they_are(run, capsys, monkeypatch):
    odd = [SimpleNamespace(text="[red] :star:")]
    monkeypatch.setattr(captioner, "caption", lambda *args, **settings: odd)
    caption(run.directory, [run.images / run.ids[1]])
    message = capsys.readouterr().out
    assert run.ids[1] in message
    assert message.count("[red] :star:") == 2


def test_caption_of_missing_files_names_each_and_the_nearest(run, monkeypatch):
    monkeypatch.setattr(load, "load_policy", None)  # not reached
    near = run.images / run.ids[1].replace("png", "jpg")
    with pytest.raises(UserError) as error:
        caption(run.directory, [near, run.images / "100001x.png", run.directory / "adapter"])
    first, second, third = str(error.value).splitlines()
    assert first == f"image '{near}' not found; nearest: {run.images / run.ids[1]}"
    assert second.startswith(f"image '{run.images / '100001x.png'}' not found")
    assert third == f"no image file in '{run.directory / 'adapter'}'"


def captioned(capsys, names):
    """Those of these names that begin a row of what was printed, in its order; all lines of it."""
    lines = capsys.readouterr().out.splitlines()
    return [word for line in lines for word in line.split()[:1] if word in names], lines


def test_caption_takes_files_folders_and_patterns_in_the_order_given(run, capsys):
    more = run.images.parent / "more"
    (more / "deep").mkdir(parents=True)
    (more / "notes.txt").write_text("no image")
    names = ["b.png", "a.png", "deep/c.png"]
    for name, source in zip(names, run.ids, strict=False):
        (more / name).write_bytes((run.images / source).read_bytes())
    pattern = run.images / f"*{run.ids[3][-5:]}"
    sources = [run.images / run.ids[5], more / "b.png", more, pattern, run.images / run.ids[5]]
    caption(run.directory, sources)
    here = run.images.name
    shown = [f"{here}/{run.ids[5]}", *(f"more/{name}" for name in names), f"{here}/{run.ids[3]}"]
    rows, _ = captioned(capsys, [*shown, *names, *run.ids])
    assert rows == shown
    caption(run.directory, [more])
    assert captioned(capsys, names)[0] == ["a.png", "b.png", "deep/c.png"]


def test_one_bad_image_among_many_is_named_and_stops_nothing(run, capsys):
    (run.images / "0.png").write_bytes(b"")
    missing = run.images / "gone.png"
    caption(run.directory, [run.images / run.ids[4], missing, run.images / "0.png", run.images])
    rows, lines = captioned(capsys, ["0.png", "gone.png", *run.ids])
    assert rows == [run.ids[4], *(name for name in run.ids if name != run.ids[4])]
    left_out = [line for line in lines if line.startswith("Left out: ")]
    assert len(left_out) == 2
    assert left_out[0].startswith(f"Left out: image '{missing}' not found")
    assert "0.png" in left_out[1]


def test_run_without_adapter_or_without_directory_is_an_error(run):
    (run.directory / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(UserError, match="no trained weights"):
        caption(run.directory, [run.images / run.ids[0]])
    with pytest.raises(UserError, match=r"'.*mime' not found; nearest: .*mine"):
        caption(run.directory.with_name("mime"), [run.images / run.ids[0]])
