"""Runs beside each other: paired by hand, what is left out is named, what cannot be is refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vizer_rl import cli
from vizer_rl.config.schema import Policy, Run, Scorer
from vizer_rl.data import scenes as draw
from vizer_rl.errors import UserError
from vizer_rl.evaluation import evaluate, evaluated_runs
from vizer_rl.evaluation.compare import HEADLINE, comparison
from vizer_rl.evaluation.metrics import scene_facts

VAGUE, COUNT = "a red circle", 12


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder with drawn scenes, their ids and their true captions."""
    images = draw.write(tmp_path_factory.mktemp("scenes") / "held", 1_000_000, COUNT)
    truth = json.loads(draw.truth_of(images).read_text())
    return SimpleNamespace(images=images, truth=truth, ids=sorted(truth))


@pytest.fixture
def write(scenes, tmp_path, monkeypatch):
    """Writes the directory of an evaluated run; captions and held-out scores of its images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(name, captions, scores, *, scorer="embedded:b", root=None, drawn=True, **more):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        settings = Run(
            family="smolvlm",
            profile="scenes",
            name=name,
            policy=Policy(model="embedded"),
            scorer=Scorer(train="embedded:a", heldout=scorer),
            rewards={},
            train={"max_completion_length": 24},
        )
        (folder / "config.yaml").write_text(settings.to_yaml())
        about = {"source": str(root or scenes.images), "ids": [*captions], "drawn": drawn}
        (folder / "heldout.json").write_text(json.dumps(about))
        about = {"version": evaluated_runs.VERSION, "n_images": len(captions)}
        (folder / "eval.json").write_text(json.dumps(about))
        lines = [
            {
                "image_id": i,
                "base": VAGUE,
                "trained": caption,
                "base_score": 0.2,
                "trained_score": score,
                "base_doubtful": [],
                "trained_doubtful": [{"start": 0, "end": 1}] if caption == VAGUE else [],
                **({"truth": scenes.truth[i]["caption"]} if drawn else {}),
                **{key: value[i] for key, value in more.items()},
            }
            for (i, caption), score in zip(captions.items(), scores, strict=True)
        ]
        (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return run


def true_captions(scenes, ids=None):
    return {i: scenes.truth[i]["caption"] for i in ids or scenes.ids}


def two(write, scenes):
    """A run that says the truth, and one that says VAGUE on all images but the first."""
    vague = dict.fromkeys(scenes.ids, VAGUE) | true_captions(scenes, scenes.ids[:1])
    scores = np.linspace(0.3, 0.4, COUNT)
    return write("good", true_captions(scenes), scores), write("vague", vague, scores - 0.01)


def test_runs_are_compared_on_other_images_too(write, scenes):
    folders = []
    for directory in two(write, scenes):
        folder = directory / "images-photos"
        folder.mkdir()
        for name in ("eval.json", "captions.jsonl", "heldout.json"):
            (directory / name).rename(folder / name)
        folders.append(folder)
    result = comparison(folders)
    assert result["runs"] == [str(folder) for folder in folders]
    assert result["images"] == COUNT
    (folders[0] / "eval.json").unlink()
    with pytest.raises(UserError, match=r"`vizer-rl evaluate --run good --images …` writes it"):
        comparison(folders)


def test_differences_are_paired_and_facts_are_of_the_truth(write, scenes):
    result = comparison(two(write, scenes))
    assert (result["runs"], result["images"], result["sentences"]) == (["good", "vague"], COUNT, [])
    metrics = result["metrics"]
    truths = [scenes.truth[i] for i in scenes.ids]
    captions = [true_captions(scenes)[scenes.ids[0]], *[VAGUE] * (COUNT - 1)]
    f1 = scene_facts.columns(captions, truths)["fact_f1"].mean()
    assert metrics["fact_f1"]["good"]["mean"]["value"] == 1
    assert metrics["fact_f1"]["vague"]["mean"]["value"] == pytest.approx(f1)
    assert metrics["fact_f1"]["vague"]["difference"]["value"] == pytest.approx(f1 - 1)
    change = metrics["heldout_score"]["vague"]["difference"]  # unpaired, .01 would drown
    assert [*change.values()] == pytest.approx([-0.01] * 3)
    assert metrics["doubtful_rate"]["vague"]["mean"]["value"] == pytest.approx(11 / 12)
    assert metrics["mean_length"]["base"]["mean"]["value"] == 3
    assert list(metrics["fact_f1"]) == ["good", "vague", "base"]


def test_p_is_after_holm_and_of_headline_metrics_alone(write, scenes):
    good, vague = two(write, scenes)
    metrics = comparison([good, vague])["metrics"]
    tested = [m for m in metrics if metrics[m]["vague"]["p"] is not None]
    assert tested == [m for m in metrics if m in HEADLINE]
    assert metrics["heldout_score"]["vague"]["p"] == pytest.approx(4 * 2 / 2001)  # four tests
    again = write("again", true_captions(scenes), np.linspace(0.3, 0.4, COUNT))
    metrics = comparison([good, vague, again])["metrics"]
    assert metrics["heldout_score"]["vague"]["p"] == pytest.approx(8 * 2 / 2001)  # eight
    assert metrics["heldout_score"]["again"]["p"] == 1
    assert metrics["heldout_score"]["good"] == metrics["heldout_score"]["again"] | {
        "difference": None,
        "p": None,
    }


def test_the_images_they_differ_most_on(write, scenes):
    result = comparison(two(write, scenes))
    assert result["by"] == "fact_f1"
    values = [
        e["captions"]["good"]["value"] - e["captions"]["vague"]["value"] for e in result["examples"]
    ]
    assert values == sorted(values, reverse=True)
    assert len(values) == 4
    assert scenes.ids[0] not in [e["image_id"] for e in result["examples"]]
    assert all(e["truth"] == [e["captions"]["good"]["caption"]] for e in result["examples"])


def test_references_give_the_metrics_of_captions(write, scenes):
    cats = {i: f"cat number {n} on a mat" for n, i in enumerate(scenes.ids)}
    references = {i: [cat, "something outside"] for i, cat in cats.items()}
    runs = [
        write("cats", cats, [0.3] * COUNT, drawn=False, references=references),
        write("circles", dict.fromkeys(scenes.ids, VAGUE), [0.3] * COUNT, drawn=False),
    ]
    result = comparison(runs)
    metrics = result["metrics"]
    assert result["by"] == "cider_d"
    assert metrics["bleu_4"]["cats"]["mean"]["value"] == pytest.approx(1)
    assert metrics["bleu_1"]["circles"]["difference"]["high"] < 0
    assert metrics["cider_d"]["circles"]["difference"]["high"] < 0
    assert "fact_f1" not in metrics
    example = result["examples"][0]
    assert example["truth"] == [example["captions"]["cats"]["caption"]]


def test_other_images_are_left_out_and_named(write, scenes, tmp_path):
    half = scenes.ids[:8]
    copied = tmp_path / "copy"
    shutil.copytree(scenes.images, copied)
    (copied / scenes.ids[0]).write_bytes((copied / scenes.ids[1]).read_bytes())
    runs = [
        write("all", true_captions(scenes), [0.3] * COUNT),
        write("half", true_captions(scenes, half), [0.3] * 8, root=copied, drawn=False),
    ]
    result = comparison(runs)
    assert result["images"] == 7  # one name, but another picture
    (sentence,) = result["sentences"]
    assert f"5 of all ({scenes.ids[0]}, {scenes.ids[8]}, {scenes.ids[9]}, …)" in sentence
    assert f"1 of half ({scenes.ids[0]})" in sentence


def test_scores_of_two_scorers_are_not_compared(write, scenes):
    runs = [
        write("b", true_captions(scenes), [0.3] * COUNT),
        write("a", true_captions(scenes), [0.3] * COUNT, scorer="embedded:a"),
    ]
    result = comparison(runs)
    assert "they differ: embedded:b (b), embedded:a (a)" in result["sentences"][0]
    assert not {"heldout_score", "doubtful_rate"} & set(result["metrics"])


def test_a_scorer_that_judged_both_is_compared_under_its_name(write, scenes, capsys):
    """B is held out of one run and a further scorer of the other; C of both."""
    third = dict.fromkeys(scenes.ids, 0.5)

    def judged(by, trained):
        same = {f"base_score:{by}": third}
        return same | {f"trained_score:{by}": dict.fromkeys(scenes.ids, trained)}

    captions = true_captions(scenes)
    write("b", captions, [0.3] * COUNT, **judged("C/c", 0.6))
    more = judged("C/c", 0.7) | judged("embedded:b", 0.2)
    write("a", captions, [0.9] * COUNT, scorer="embedded:a", **more)
    assert cli.main(["compare", "--run", "b", "--run", "a"]) == 0
    printed = capsys.readouterr().out
    assert "held-out 2: held-out score by embedded:b." in printed
    assert "held-out 3: held-out score by C/c." in printed
    result = comparison([Path("runs/b"), Path("runs/a")])
    (sentence,) = result["sentences"]
    start = "Not compared: doubtful words, for the runs' held-out scorers differ: embedded:b (b)"
    assert sentence.startswith(start)
    keys = [metric for metric in result["metrics"] if metric.startswith("heldout_score")]
    assert keys == ["heldout_score:embedded:b", "heldout_score:C/c"]
    for key, value in zip(keys, (0.2 - 0.3, 0.7 - 0.6), strict=True):
        cell = result["metrics"][key]["a"]
        assert [*cell["difference"].values()] == pytest.approx([value] * 3)
        assert cell["p"] is None


def test_what_one_run_has_no_score_of_is_named_and_the_rest_compared(write, scenes):
    good, vague = two(write, scenes)
    lines = [json.loads(line) for line in (vague / "captions.jsonl").open()]
    for line in lines:
        for key in ("base_score", "trained_score", "base_doubtful", "trained_doubtful"):
            line.pop(key)
    (vague / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = comparison([good, vague])
    assert result["sentences"] == [
        "Not compared: held-out score, for there is none of vague.",
        "Not compared: doubtful, for there is none of vague.",
    ]
    assert not {"heldout_score", "doubtful_rate"} & set(result["metrics"])
    assert result["metrics"]["fact_f1"]["vague"]["p"] == pytest.approx(2 * 2 / 2001)
    lines[3]["trained_score:C/c"] = "high"
    (vague / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"line 4: .*trained_score:C/c: 'high' is no number"):
        comparison([good, vague])


def test_the_table_has_80_columns(write, scenes, capsys):
    two(write, scenes)
    assert cli.main(["compare", "--run", "good", "--run", "vague"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "after Holm over these 4 tests" in printed
    assert "The images they differ most on, by fact F1:" in printed
    assert "-.010 [-.010, -.010]" in printed


def test_what_cannot_be_compared_is_one_sentence(write, scenes, tmp_path, capsys):
    vague = two(write, scenes)[1]
    write("photos", {"x.png": VAGUE}, [0.3], root=tmp_path, drawn=False)

    def refused(*names):
        assert cli.main(["compare", *(word for name in names for word in ("--run", name))]) == 2
        return capsys.readouterr().err

    assert "one run has nothing to be compared with" in refused("good")
    assert "given twice" in refused("good", "runs/good")
    assert "nearest: runs/good" in refused("vague", "goood")
    assert f"share none: {COUNT} of '{scenes.images}' (good), 1 of '{tmp_path}'" in refused(
        "good", "photos"
    )
    lines = (vague / "captions.jsonl").read_text()
    (vague / "captions.jsonl").write_text("".join(lines.splitlines(True)[:5]))
    assert "has 5 of 12 images, so it was not written to its end" in refused("good", "vague")
    (vague / "captions.jsonl").write_text(lines[:-20])
    assert "line 12" in refused("good", "vague")
    (vague / "eval.json").write_text('{"n_images": 12}')
    assert "is of version 1, this vizer_rl reads version 2" in refused("good", "vague")
    (vague / "eval.json").write_text('{"n_images"')
    assert "cannot be used" in refused("good", "vague")
    (vague / "eval.json").unlink()
    assert "has no eval.json: `vizer-rl evaluate --run vague`" in refused("good", "vague")
    assert evaluated_runs.VERSION == evaluate.VERSION
