"""`vizer-rl evaluate` on a tiny run: its rows come from the base, and have a verdict."""

import json
from types import SimpleNamespace

from vizer_rl import cli
from vizer_rl.data.sources import ImageFolder
from vizer_rl.policy.captioner import Caption
from vizer_rl.training import controls


class Policy:
    """Writes a word per token until it may end, two at least."""

    reference = SimpleNamespace(token_ids=lambda text: text.split())

    def captions(self, folder, count, prompt="", min_new_tokens=0):
        text = " ".join(["word"] * max(2, min_new_tokens))
        return [[Caption(text, [1])] * count for _ in folder.ids]


def test_length_matched_captions_are_the_nearest_of_four():
    images = ImageFolder("", None, ["a", "b", "c"], {})
    trained = ["one", " ".join(["w"] * 8), " ".join(["w"] * 3)]
    control = controls.length_matched(Policy(), images, trained)
    assert [len(text.split()) for text in control.captions] == [2, 8, 3]


def rewards_of(line):
    row = json.loads(line)
    return row["base_rewards"], row["trained_rewards"]


def test_a_run_is_held_against_what_needs_no_training(command, capsys, monkeypatch):
    monkeypatch.setattr(controls, "PROMPTS", controls.PROMPTS[:2])
    monkeypatch.setattr(controls, "PROMPT_IMAGES", 8)
    directory = command("smolvlm", "controlled", "data.limit=40", "rewards.alignment=null")
    before = json.loads((directory / "eval.json").read_text())
    rewards = [rewards_of(line) for line in (directory / "captions.jsonl").open()]
    assert "verdict" not in before
    assert "vizer-rl evaluate --run controlled" in capsys.readouterr().out
    assert cli.main(["evaluate", "--run", "controlled"]) == 0
    result = json.loads((directory / "eval.json").read_text())
    assert {key: result[key] for key in ("base", "trained", "change")} == {
        key: before[key] for key in ("base", "trained", "change")
    }
    rows = [json.loads(line) for line in (directory / "captions.jsonl").open()]
    assert [rewards_of(json.dumps(row)) for row in rows] == rewards
    assert list(result["controls"]) == ["best_prompt", "length_matched", "best_of_8"]
    assert all(list(row["controls"]) == list(result["controls"]) for row in rows)
    assert all(row["controls"]["best_of_8"]["caption"] for row in rows)
    assert len(result["verdict"]["sentences"]) == 3
    words = {name: row["mean_length"]["value"] for name, row in result["controls"].items()}
    assert abs(words["length_matched"] / result["trained"]["mean_length"]["value"] - 1) < 0.2
    shown = capsys.readouterr().out
    for name in ("best prompt", "base, as long", "best of 8", "Verdict:"):
        assert name in shown
    page = (directory / "report.html").read_text()
    assert "Against the controls" in page
    assert "Controls were not measured" not in page
