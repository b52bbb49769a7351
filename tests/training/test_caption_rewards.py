"""Rewards of finished captions: by row, with their sum over both rows, None where none judges."""

import json
from types import SimpleNamespace

import pytest

from vizer_rl import cli
from vizer_rl.data.sources import ImageFolder
from vizer_rl.scoring.reward_functions import Reward, RewardFunctions
from vizer_rl.training.caption_rewards import caption_rewards


class Words:
    reads = ("text",)

    def __call__(self, batch):
        return [float(len(caption.split())) for caption in batch.captions]


class Ended:
    """A gate, which refuses what was cut."""

    gates = True

    def __call__(self, batch):
        return [0.0 if ended else -1.0 for ended in batch.ended]


@pytest.fixture
def functions():
    policy = SimpleNamespace(token_ids=lambda text: [5] * len(text.split()))
    rewards = [Reward("words", 1.0, Words()), Reward("ended", 1.0, Ended())]
    return RewardFunctions(rewards, lambda name: None, policy, [9, 7], 8)


def test_each_row_has_its_raw_rewards_and_their_sum_over_both(functions):
    images = ImageFolder("", None, ["x", "y"], {})
    captions = {"base": ["a", "a b"], "trained": ["a b c", "a b c d"]}
    rows = caption_rewards(functions, 4, images, captions)
    assert [row["words"] for row in rows["base"]] == [1.0, 2.0]
    assert [row["words"] for row in rows["trained"]] == [3.0, None]
    assert [row["ended"] for row in rows["trained"]] == [0.0, -1.0]
    assert rows["base"][0]["sum"] < rows["base"][1]["sum"] < rows["trained"][0]["sum"]
    assert rows["trained"][1]["sum"] < rows["base"][1]["sum"]  # below the other of its image


def test_no_image_is_taken_for_a_training_image_of_its_name(functions):
    seen = []
    functions.rewards[0].score = lambda batch: seen.extend(batch.image_ids) or [0.0, 0.0]
    images = ImageFolder("", None, ["0001.png"], {})
    caption_rewards(functions, 4, images, {"base": ["a"], "trained": ["b"]})
    assert seen == ["to-judge:0001.png"] * 2


def test_every_evaluation_of_a_run_has_its_rewards(command, capsys):
    """After training from rewards that are prepared, later from rewards that prepare again."""
    directory = command("smolvlm", "rewarded", "data.limit=40")
    page, lines = directory / "report.html", directory / "captions.jsonl"
    after_training = lines.read_bytes()
    rows = [json.loads(line) for line in after_training.splitlines()]
    names = ["self_retrieval", "clip_similarity", "alignment", "repetition", "length"]
    names += ["certainty", "ended"]
    for row in rows:
        assert list(row["base_rewards"]) == list(row["trained_rewards"]) == [*names, "sum"]
    assert len({row["base_rewards"]["self_retrieval"] for row in rows}) > 1
    assert '"rewards":{"self_retrieval":[' in page.read_text()
    page.unlink()
    lines.unlink()
    assert cli.main(["evaluate", "--run", "rewarded", "--no-controls"]) == 0
    assert lines.read_bytes() == after_training
    assert '"rewards":{"self_retrieval":[' in page.read_text()
    shown = capsys.readouterr().out
    assert shown.count("Report: ") == 2
    assert shown.count("captions sampled from the base come to no end") == 1  # not said again


def test_rewards_that_cannot_be_prepared_are_left_out_and_the_rest_is_there(command, capsys):
    """As where a run directory was copied to a machine without what a reward needs."""
    directory = command(
        "smolvlm", "copied", "data.limit=40", "recipe=null", "rewards.alignment=null"
    )
    settings = (directory / "config.yaml").read_text()
    gone = settings.replace("embedded:a", "local-dir:/nowhere")
    assert gone != settings
    (directory / "config.yaml").write_text(gone)
    assert cli.main(["evaluate", "--run", "copied"]) == 0
    sentence = "Controls and rewards of the captions: reward 'self_retrieval': encoder "
    (left_out,) = json.loads((directory / "eval.json").read_text())["left_out"]
    assert left_out.startswith(sentence)
    assert "/nowhere" in left_out
    assert left_out in capsys.readouterr().out.replace("\n", " ")
    assert "Controls and rewards of the captions: reward" in (directory / "report.html").read_text()
    assert "base_rewards" not in (directory / "captions.jsonl").read_text()
