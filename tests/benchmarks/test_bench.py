"""`make bench`: what it writes and what it says; not how fast anything is."""

import json
import sys
from dataclasses import replace

import pytest

from benchmarks import bench, side

FACTS = ("case", "family", "device", "num_generations", "image_tokens", "ours", "trl", "speedup")
SIDE = ["step_seconds", "captions_per_second", "peak_memory_mb", "unique_token_share"]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "_peak_of", lambda case, side: {"ours": 10.0, "trl": 40.0}[side])
    small = [replace(c, images=1, group=2, steps=1) for c in bench.cases()["embedded"]]
    monkeypatch.setattr(bench, "cases", lambda: {"embedded": small, "real": REAL})
    return tmp_path / "latest.json"


REAL = bench.cases()["real"]


def ask(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    bench.main()


def test_a_case_is_measured_and_written(results, monkeypatch, capsys):
    ask(monkeypatch, "embedded-qwen2vl", "real")
    (row,) = json.loads(results.read_text())
    assert set(row) == {*FACTS, "memory_ratio", "grad_rel_diff"}
    assert list(row["ours"]) == list(row["trl"]) == SIDE
    assert row["grad_rel_diff"] < 1e-4
    assert row["memory_ratio"] == 0.25
    assert row["num_generations"] == 2
    assert 0 < row["trl"]["unique_token_share"] < row["ours"]["unique_token_share"] == 1
    ask(monkeypatch, "embedded")
    rows = json.loads(results.read_text())
    assert [r["case"] for r in rows] == ["embedded-smolvlm", "embedded-qwen2vl"]
    assert rows[1]["ours"] != row["ours"], "measured anew"
    printed = capsys.readouterr().out
    assert "gradient differs by" in printed
    assert printed.count("no CUDA, left out") == len(REAL)


def test_a_machine_where_no_prefix_is_shared_gets_no_numbers(results, monkeypatch):
    monkeypatch.setattr(side, "probe_obstacle", lambda _: "transformers 5.17.0 takes no features")
    with pytest.raises(SystemExit, match=r"nothing to compare: transformers 5\.17\.0 takes"):
        ask(monkeypatch, "embedded-smolvlm")
    assert not results.exists()


def test_an_unknown_case_is_named(results, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        ask(monkeypatch, "embeded")
    assert "unknown case 'embeded'; known: embedded, real" in capsys.readouterr().err
