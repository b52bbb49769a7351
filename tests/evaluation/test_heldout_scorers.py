"""Held-out scorers of an evaluation: one that is missing, and further ones beside the run's own."""

import json
import re

import pytest
import torch

from vizer_rl import cli
from vizer_rl.errors import UserError
from vizer_rl.evaluation import evaluate
from vizer_rl.evaluation.against_controls import NO_VERDICT, Control, Controls
from vizer_rl.scoring import clip

from .evaluated_run import ALWAYS, FACTS, VAGUE, Scores, Solid, held_out, narrow, results

BY_SCORER = {"heldout_score", "retrieval_1", "retrieval_5", "doubtful_rate", "doubtful_words"}
WITHOUT = [name for name in ALWAYS if name not in BY_SCORER]
GONE = (
    "Held-out score, retrieval and doubtful words are left out, for the run's held-out scorer "
    "cannot be loaded: 'nowhere' is no folder with an open_clip_config.json."
)
LONG = "a red circle above it"


class Several(Scores):
    """Beside the run's own a scorer that prefers short captions: .8 for them, else .6."""

    def __init__(self, name, device, opening):
        self.further = name != "embedded:b"

    def text_features(self, captions):
        if not self.further:
            return super().text_features(captions)
        return torch.tensor([[0.6, 0.8] if len(c.split()) > 4 else [0.8, 0.6] for c in captions])


@pytest.fixture
def missing(run):
    """The run, whose held-out scorer is no longer there."""
    set_in(run, "heldout: embedded:b", "heldout: local-dir:nowhere")
    return run


def set_in(run, old, new):
    path = run.directory / "config.yaml"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))


def folder_of_scorer(tmp_path, name="third"):
    folder = tmp_path / "with a space" / name
    folder.mkdir(parents=True)
    for file in ("open_clip_config.json", "open_clip_model.safetensors"):
        (folder / file).touch()
    return f"local-dir:{folder}"


def controls(settings, images, captions):
    rows = {"best_prompt": Control([VAGUE] * 8, "greedy"), "best_of_8": Control([LONG] * 8, "8")}
    return Controls(rows, {})


def test_without_its_scorer_a_run_is_evaluated_by_all_else(missing, capsys):
    evaluate.evaluate(missing.directory)
    matches, rows = results(missing.directory)
    for side in ("base", "trained", "change"):
        assert list(matches[side]) == FACTS + WITHOUT
    assert matches["trained"]["visual_dependence"]["value"] == pytest.approx(0.5)
    assert matches["left_out"] == [GONE]
    assert [list(row) for row in rows] == [["image_id", "base", "trained", "truth"]] * 8
    shown = capsys.readouterr().out
    assert GONE in shown.splitlines()
    page = (missing.directory / "report.html").read_text()
    assert GONE.replace("'", "&#x27;") in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert data["runs"][0]["rows"][0]["scores"] == {}


def test_damaged_weights_of_a_scorer_are_missing_ones(run, tmp_path, monkeypatch):
    monkeypatch.undo()
    name = folder_of_scorer(tmp_path)
    config = (clip.ASSETS / "scorer-b" / "open_clip_config.json").read_text()
    (tmp_path / "with a space" / "third" / "open_clip_config.json").write_text(config)
    scorer, why = clip.load_or_why(name, torch.device("cpu"), "")
    assert scorer is None
    assert why.startswith(f"the weights of '{name}' are damaged (")
    scorer, why = clip.load_or_why("embedded:b", torch.device("cpu"), "")
    assert isinstance(scorer, clip.OpenClip)
    assert why == ""


def test_metrics_of_references_need_a_scorer_where_they_are_clips(missing, tmp_path, capsys):
    file = tmp_path / "references.json"
    file.write_text(json.dumps({i: [missing.stored[i]["caption"]] for i in missing.ids}))
    evaluate.evaluate(missing.directory, references=[file])
    matches, _ = results(missing.directory)
    assert matches["trained"]["bleu_1"]["value"] > matches["base"]["bleu_1"]["value"]
    assert not {"clip_score", "ref_clip_score", "recall_1"} & set(matches["base"])
    assert matches["references"]["clip"] is None
    why = "the run's held-out scorer cannot be loaded (--clip names another model)."
    by_clip = ("clip_score", "ref_clip_score", "retrieval")
    assert [f"{name} is left out: {why}" for name in by_clip] == matches["left_out"][-3:]
    with pytest.raises(UserError, match="metric 'retrieval' cannot be computed: the run's held-"):
        evaluate.evaluate(missing.directory, metrics=["retrieval"])
    evaluate.evaluate(missing.directory, references=[file], clip_model="embedded:b")
    matches, _ = results(missing.directory)
    assert matches["base"]["clip_score"]["value"] == pytest.approx(
        2.5
    )  # behind "A photo depicts" it has 6 words
    assert matches["references"]["clip"] == "embedded:b"
    assert not BY_SCORER & set(matches["base"])


def test_without_a_scorer_the_truth_says_which_control_is_the_best(missing, capsys):
    evaluate.evaluate(missing.directory, controls=controls)
    matches, rows = results(missing.directory)
    assert rows[0]["controls"]["best_of_8"] == {"caption": LONG}
    verdict = matches["verdict"]
    values = {row: matches["controls"][row]["fact_f1"]["value"] for row in matches["controls"]}
    best = max(values, key=values.get)
    assert verdict["by"] == "fact_f1"
    assert {test["control"] for test in verdict["tests"]} <= {best, "base"}
    assert [test["metric"] for test in verdict["tests"]] == ["fact_f1"]
    assert "than the best control by fact F1, " in verdict["sentences"][0]
    assert verdict["sentences"][0] in " ".join(capsys.readouterr().out.split())


def test_where_nothing_says_which_control_is_the_best_there_is_no_verdict(missing, capsys):
    held_out(missing.directory, missing.images, missing.ids, None)
    evaluate.evaluate(missing.directory, controls=controls)
    matches, _ = results(missing.directory)
    assert "verdict" not in matches
    assert matches["left_out"] == [GONE, NO_VERDICT]
    assert list(matches["over_controls"]) == ["best_prompt", "best_of_8"]
    shown = capsys.readouterr().out
    assert NO_VERDICT in shown
    assert "Verdict:" not in shown
    page = (missing.directory / "report.html").read_text()
    assert "Against the controls" in page
    assert "Controls were not measured" not in page


def test_further_scorers_stand_beside_the_runs_own(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(clip, "OpenClip", Several)
    name = folder_of_scorer(tmp_path)
    key = f"heldout_score:{name}"
    names = ["embedded:b", name, "ViT-B-32/opnai", name]  # the run's own is there anyway
    evaluate.evaluate(run.directory, heldout=names, controls=controls)
    matches, rows = results(run.directory)
    long = sum(len(row["trained"].split()) > 4 for row in rows) / 8
    assert list(matches["base"]) == [*FACTS, *ALWAYS[:2], key, *ALWAYS[2:]]
    assert matches["base"][key]["value"] == pytest.approx(0.8)
    assert matches["change"][key]["value"] == pytest.approx(-0.2 * long)
    assert matches["controls"]["best_of_8"][key]["value"] == pytest.approx(0.6)
    change = matches["over_controls"]["best_of_8"][key]
    assert change["value"] == pytest.approx(0.8 - 0.2 * long - 0.6)
    assert matches["change"]["heldout_score"]["value"] == pytest.approx(0.4 * long)
    (left_out,) = matches["left_out"]
    assert left_out.startswith("The held-out score by ViT-B-32/opnai is left out: 'ViT-B-32/opnai'")
    assert rows[1][f"trained_score:{name}"] == pytest.approx(0.6)
    assert rows[1]["controls"]["best_prompt"][f"score:{name}"] == pytest.approx(0.8)
    assert matches["verdict"]["by"] == "heldout_score"
    shown = capsys.readouterr().out
    assert f"held-out 2: held-out score by {name}." in shown.splitlines()
    assert "By further held-out scorers (mean, 95 % bootstrap interval):" in shown
    lines = [line for line in narrow(shown) if name not in line and line != left_out]
    assert max(map(len, lines)) <= 80
    page = (run.directory / "report.html").read_text()
    assert "held-out, local-dir:third<small>" in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert data["runs"][0]["rows"][1]["scores"][f"score:{name}"] == [0.8, 0.6]


def test_a_further_scorer_chooses_the_control_where_the_runs_own_is_gone(
    missing, tmp_path, monkeypatch
):
    monkeypatch.setattr(clip, "OpenClip", Several)
    name = folder_of_scorer(tmp_path)
    evaluate.evaluate(missing.directory, heldout=[name], controls=controls)
    verdict = results(missing.directory)[0]["verdict"]
    assert verdict["by"] == f"heldout_score:{name}"
    assert [t["metric"] for t in verdict["tests"]] == [f"heldout_score:{name}", "fact_f1"]
    assert {t["control"] for t in verdict["tests"]} == {"base"}  # .8, as the best prompt
    rule = "than the best control by held-out score by local-dir:third, base: held-out score by"
    assert rule in verdict["sentences"][0]


def test_a_scorer_of_the_rewards_is_not_held_out(run):
    with pytest.raises(UserError, match="--heldout embedded:a: the rewards of run 'mine' use it"):
        evaluate.evaluate(run.directory, heldout=["embedded:a"])
    own = "rewards: {self_retrieval: {weight: 1.0, encoder: ViT-B-16-SigLIP/webli}}"
    set_in(run, "rewards: {}", own)
    with pytest.raises(UserError, match="--heldout ViT-B-16-SigLIP/webli: the rewards"):
        evaluate.evaluate(run.directory, heldout=["ViT-B-16-SigLIP/webli"])
    assert not (run.directory / "eval.json").exists()


def test_the_flag_takes_several(run, monkeypatch):
    calls = []
    monkeypatch.setattr(evaluate, "evaluate", lambda *args, **_: calls.append(args))
    assert not cli.main(["evaluate", "--run", "mine", "--heldout", "a/b", "c/d"])
    assert not cli.main(["evaluate", "--run", "mine"])
    assert [args[-1] for args in calls] == [["a/b", "c/d"], ()]


def test_under_a_dial_doubtful_words_choose_the_control(run, monkeypatch):
    monkeypatch.setattr(clip, "OpenClip", Solid)
    set_in(run, "rewards: {}", "rewards: {certainty: {weight: 2.0}}")
    evaluate.evaluate(run.directory, controls=controls)
    verdict = results(run.directory)[0]["verdict"]
    assert verdict["by"] == "doubtful_words"
    metrics = ["doubtful_words", "fact_f1", "hallucination_rate"]
    assert [test["metric"] for test in verdict["tests"]] == metrics
