"""Tables on certainty, from fake run directories: the front, the hack, the seconds to a goal."""

import json
import xml.etree.ElementTree as ET

import pytest

from experiments import front, hacked, time_to_quality

from .conftest import estimates

ID = "0.png"
SCENE = {
    "objects": [
        {"shape": s, "colour": c, "size": "large", "fill": "solid", "x": x, "y": 40, "r": 15}
        for s, c, x in (("star", "red", 30), ("circle", "blue", 70))
    ],
    "relation": "left of",
    "caption": "a large solid red star left of a large solid blue circle",
}


def points(recall, wrong):
    change = {"fact_recall": {"value": recall}, "hallucination_rate": {"value": wrong}}
    return {m: estimates(0.5)[m] | change.get(m, {}) for m in estimates(0.5)}


@pytest.fixture
def rows(write):
    """Three rows of a front; the second is beaten by the first in both."""
    for name, recall, wrong in (("clip", 0.8, 0.6), ("balanced", 0.7, 0.65), ("oracle", 0.9, 0.1)):
        write(
            f"front-smolvlm-{name}-0",
            eval={"base": points(0.4, 0.5), "trained": points(recall, wrong)},
        )
    write(
        "front-smolvlm-certainty-0.8-1",
        eval={"base": points(0.4, 0.5), "trained": points(0.5, 0.2)},
    )


def test_the_front_is_what_no_other_row_beats_in_both(rows):
    text = front.table("smolvlm", [0, 1])
    assert "| base | 0.500 [0.400, 0.700] | 0.500 [0.400, 0.700] | 0.400 " in text
    assert "| CLIP cosine alone (1) | " in text
    assert text.endswith("On the front: CLIP cosine alone, certainty alone, dial 0.8.")
    assert front.table("qwen2vl", [0]) == "qwen2vl: no run is there yet"


def test_the_picture_has_a_panel_with_a_point_a_row(rows):
    drawn = ET.fromstring(front.picture(["smolvlm", "qwen2vl"], [0, 1]))
    circles = drawn.findall("{*}circle")
    assert len(circles) == 5  # four rows and the base
    assert all(0 < float(c.get(k)) < 600 for c in circles for k in ("cx", "cy"))


def test_every_row_of_the_front_is_a_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, (_, overrides) in front.ROWS.items():
        runs = front.runner.arguments("smolvlm", front.directory("smolvlm", name, 0), 0, overrides)
        run = front.load_run(front.Path(runs[0]), runs[1:])
        dial = run.rewards.get("certainty", {}).get("at_least")
        wanted = {"balanced": 0.8, "faithful": 0.9, "descriptive": 0.65, "both": 0.8, "raft": 0.8}
        wanted |= {"sft": 0.8, "oracle": 0.8} | {f"certainty-{p:g}": p for p in front.DIAL}
        assert dial == wanted.get(name), name


def test_what_a_hack_did_is_told_with_captions_that_are_wrong_anew(write, tmp_path, monkeypatch):
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({ID: SCENE}))
    monkeypatch.setattr(hacked, "truth_of", lambda source: truth)
    curve = {
        str(step): {"fact_f1": f1, "hallucination_rate": wrong}
        for step, f1, wrong in ((0, 0.5, 0.4), (50, 0.8, 0.5), (300, 0.7, 0.625))
    }
    pair = {"image_id": ID, "base": "a red star", "trained": "a red star above a yellow star"}
    write(
        "hacked-smolvlm-0",
        truth_curve=curve,
        heldout={"source": str(tmp_path), "ids": [ID], "drawn": True},
        captions=[pair],
    )
    text = hacked.table(["smolvlm", "qwen2vl"], [0])
    row = "| hacked-smolvlm-0 | 0.500 | 0.800 | 0.700 | 50 | 0.400 | 0.500 | 0.625 | +0.225 |"
    assert row in text.splitlines()
    assert f"- {SCENE['caption']}: *a red star* → *a red star above a yellow star*" in text


def test_seconds_count_up_to_the_first_adapter_that_is_as_good(write):
    goal = time_to_quality.GOAL
    steps = [{"step": k, "time/step": 2.0, "time/data": 0.5} for k in range(1, 11)]
    for side, reached in (("ours", "5"), ("stock", "10")):
        curve = {"0": 0.1, "5": 0.2, "10": 0.3} | {reached: goal, "10": goal}
        write(
            f"seconds-smolvlm-{side}-0",
            truth_curve={k: {"fact_f1": v} for k, v in curve.items()},
            metrics=[{"loss": 1.0}, *steps],
        )
    ours, stock = time_to_quality.table(["smolvlm"], [0]).splitlines()[2:]
    assert ours == f"| smolvlm | ours | 12 (12) | 5 | {goal:.3f} | 1.0 |"
    assert stock == f"| smolvlm | stock | 25 (25) | 10 | {goal:.3f} | 2.0 |"
