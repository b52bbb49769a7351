"""Evaluation of a run: other images, doubtful words, controls, rewards, and the pages of it."""

import json
import re

import pytest

from vizer_rl import cli
from vizer_rl.errors import ImageError, UserError
from vizer_rl.evaluation import evaluate, marks, tables
from vizer_rl.evaluation.against_controls import Control, Controls
from vizer_rl.evaluation.caption_images import caption
from vizer_rl.scoring import clip

from .evaluated_run import ALWAYS, FACTS, VAGUE, Solid, narrow, results


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
