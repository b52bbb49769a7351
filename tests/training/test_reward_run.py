"""Rewards in a real run: what is logged, what stops it, that it resumes; one caption scored."""

import json

import pytest
from PIL import Image

from vizer_rl import cli

from ..conftest import FEW_REWARDS, REPO, TINY

FILE = str(REPO / "experiments" / "smolvlm.yaml")
SICK = """
from pathlib import Path


class Sick:

    def __call__(self, batch):
        log = Path("runs/sick/metrics.jsonl")
        steps = len(log.read_text().splitlines()) if log.exists() else 0
        scores = [float(len(c)) for c in batch.captions]
        return [*scores[:-1], float("nan")] if steps >= 2 else scores
"""
ONE = ["train.save_steps=1", *FEW_REWARDS]


def rows(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_reward_that_breaks_stops_the_run_with_its_checkpoint_intact(workplace, command, capsys):
    file = workplace / "sick.py"
    file.write_text(SICK)
    more = [*ONE, f"rewards.{file}={{weight: 0.1}}", "train.max_steps=4"]
    assert cli.main(["train", FILE, *TINY, "name=sick", *more, "--overwrite"]) == 2
    printed = capsys.readouterr().err
    assert "reward 'sick' returned nan for image '" in printed
    assert ".png', caption '" in printed
    assert len(printed.strip().splitlines()) == 1
    directory = workplace / "runs" / "sick"
    assert [r["step"] for r in rows(directory)] == [1, 2]
    assert (directory / "checkpoint-2" / "adapter_model.safetensors").exists()
    file.write_text(SICK.replace("nan", "0.5"))
    command("smolvlm", "sick", *more, flags=("--resume",))
    assert [r["step"] for r in rows(directory)] == [1, 2, 3, 4]


def test_each_step_logs_what_every_reward_has_to_say_and_takes(command):
    directory = command("smolvlm", "told", "rewards.random.weight=0")
    result = rows(directory)
    names = ("self_retrieval", "clip_similarity", "alignment", "repetition", "length", "random")
    names += ("certainty",)
    for row in result:
        for name in names:
            keys = [f"reward/{name}", f"reward/{name}/std", f"reward/{name}/share"]
            assert {*keys, f"time/reward/{name}"} <= set(row)
        assert sum(row[f"reward/{name}/share"] for name in names) == pytest.approx(1.0, abs=1e-4)
        assert row["reward/random/share"] == 0.0
        assert 0 < sum(row[f"time/reward/{name}"] for name in names) < row["time/step"]
        assert row["reward/clip_similarity/cut"] == 0.0
        assert row["reward/alignment/variance"] > 0
        assert not any(key.startswith("rewards/") for key in row)
    assert (directory / "rewards" / "alignment.pt").exists()


def test_one_caption_is_scored_as_in_training(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("COLUMNS", "120")
    image = workplace / "data/scenes/train/images/0000003.png"
    ask = ["score", FILE, str(image), "a red star", *TINY]
    assert cli.main([*ask, "rewards.alignment=null", "rewards.random.weight=0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = {line.split()[0]: line.split()[1:] for line in lines if line[:1].strip()}
    assert table["reward"] == ["weight", "score", "weighted", "made", "of"]
    assert table["self_retrieval"][-2:] == ["this", "image"]
    assert table["clip_similarity"][-3:] == ["a", "red", "star"]
    assert table["repetition"] == ["0.3", "0.000", "0.000"]
    assert table["random"][2] == "0.000"
    names = ("self_retrieval", "clip_similarity", "repetition", "length", "random", "certainty")
    total = sum(float(table[name][2]) for name in names)
    assert float(table["sum"][0]) == pytest.approx(total, abs=0.003)


def test_a_caption_that_the_gate_refuses_is_marked_where_it_costs(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("COLUMNS", "160")
    image = workplace / "data/scenes/train/images/0000003.png"
    ask = ["score", FILE, str(image), "see www.example.com", *TINY]
    gated = [*ask, "rewards.alignment=null", "rewards.gate.weight=0.3"]
    assert cli.main(gated) == 0
    lines = capsys.readouterr().out.splitlines()
    marked = {line.split()[0] for line in lines if "not judged: the gate refuses" in line}
    assert marked == {"self_retrieval", "clip_similarity", "certainty"}


def test_a_bad_image_caption_or_run_file_is_one_sentence(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    Image.new("RGB", (8, 8)).save("ok.png")
    (workplace / "bad.png").write_text("no image")
    for image, caption, file, captions in (
        ("okk.png", "a", FILE, "image 'okk.png' not found; nearest: ok.png"),
        ("bad.png", "a", FILE, "image 'bad.png': not an image that Pillow can read"),
        ("ok.png", " ", FILE, "the caption is empty"),
        ("ok.png", "a", "smolvlm.yml", "run file 'smolvlm.yml' not found"),
    ):
        assert cli.main(["score", file, image, caption]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"vizer_rl: {captions}")
