"""Evaluation of a run: paired metrics worked out by hand, the files and the print-out."""

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from rewards.lib.chunks import caption_cosines
from vizer_rl.errors import UserError
from vizer_rl.evaluation import evaluate, tables
from vizer_rl.evaluation.before_after import Pair, summary
from vizer_rl.evaluation.caption_images import caption
from vizer_rl.evaluation.metrics import scene_facts

from .evaluated_run import ALWAYS, FACTS, VAGUE, Scores, circle, held_out, narrow, results


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


def test_a_caption_of_two_sentences_is_scored_by_both():
    scorer = Scores("embedded:b", None, "")
    captions = ["a red circle. a very large solid star.", "a red circle"]
    cosines = caption_cosines(scorer, ["x", "y"], [None, None], captions)
    assert cosines.tolist() == pytest.approx([(3 * 0.6 + 5 * 1.0) / 8, 0.6])


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


def test_run_without_adapter_or_without_directory_is_an_error(run):
    (run.directory / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(UserError, match="no trained weights"):
        caption(run.directory, [run.images / run.ids[0]])
    with pytest.raises(UserError, match=r"'.*mime' not found; nearest: .*mine"):
        caption(run.directory.with_name("mime"), [run.images / run.ids[0]])
