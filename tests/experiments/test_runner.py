"""The table runner: names, what is done already, cells; and that every table is a command."""

import json
import re
import subprocess
import sys

import pytest

from experiments import runner

from ..conftest import REPO

TABLES = ("main_result", "reward_ablation", "audit_validity", "compare_algorithms", "trained_parts")


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """The commands that would have run, in an empty folder; each leaves its marker file."""
    commands = []

    def command(*words):
        commands.append(words)
        name = next(word for word in words if word.startswith("name="))
        folder = tmp_path / "runs" / name.removeprefix("name=")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / {"train": "eval.json", "audit": "audit.json"}[words[0]]).write_text("{}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "command", command)
    return commands


def test_what_is_done_is_not_done_again(commands):
    folder = runner.directory("suite", "qwen2vl", runner.slug("default with fluency"), 2)
    assert str(folder) == "runs/suite-qwen2vl-default-with-fluency-2"
    for _ in range(2):
        runner.train("qwen2vl", folder, 2, ["algorithm=ppo"])
        runner.audit("qwen2vl", folder, 2, ["algorithm=ppo"])
    train, audit = commands
    assert train == (
        "train",
        str(REPO / "experiments/qwen2vl.yaml"),
        "profile=scenes",
        "name=suite-qwen2vl-default-with-fluency-2",
        "seed=2",
        "tracking.wandb=off",
        "algorithm=ppo",
        "--overwrite",
    )
    assert audit == ("audit", *train[1:-1])
    assert runner.finished([folder], "eval.json", "audit.json") == [folder]
    assert runner.finished([folder], "eval.json", "cost.json") == []


@pytest.mark.slow
def test_a_command_that_fails_stops_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(subprocess.CalledProcessError):
        runner.command("train", "nothing.yaml")


def test_cells_are_the_mean_and_the_widest_interval():
    seeds = [{"value": 0.1, "low": -0.2, "high": 0.3}, {"value": 0.3, "low": 0.1, "high": 0.35}]
    assert runner.interval(seeds) == "0.200 [-0.200, 0.350]"
    assert runner.interval(seeds, 1, "+") == "+0.2 [-0.2, +0.3]"
    metrics = [dict.fromkeys(runner.METRICS, seed) for seed in seeds]
    cells = ["0.200 [-0.200, 0.350]"] * 4 + ["0.2 [-0.2, 0.3]", "0.200 [-0.200, 0.350]"]
    assert runner.metric_cells(metrics) == cells


def test_rows_become_markdown():
    table = runner.markdown(["a", "b"], [["1", "2"], ["3", ""]])
    assert table == "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 |  |"
    assert runner.markdown(["a"], []) == "| a |\n|---|"


def test_names_of_runs_and_their_files(tmp_path):
    assert runner.slug("oracle (SFT on truth)") == "oracle"
    assert runner.slug("ViZer_GT") == "vizer-gt"
    (tmp_path / "metrics.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    (tmp_path / "cost.json").write_text(json.dumps({"seconds": 1}))
    assert runner.read(tmp_path, "metrics.jsonl") == [{"a": 1}, {"a": 2}]
    assert runner.read(tmp_path, "cost.json") == {"seconds": 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_a_table_without_runs_is_printed_by_the_command_line(name):
    words = [sys.executable, "-m", f"experiments.{name}", "--table", "--seeds", "97"]
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip()


def test_documents_give_commands_that_exist():
    files = [*(REPO / "experiments").glob("*.py"), REPO / "experiments/README.md"]
    for text in (file.read_text() for file in files):
        assert not re.search(r"python experiments/", text)
        for name in re.findall(r"-m (experiments\.\w+(?:\.\w+)*)", text):
            assert (REPO / f"{name.replace('.', '/')}.py").exists(), name
