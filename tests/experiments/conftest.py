"""Fake run directories that tables are made of."""

import json

import pytest

from experiments.runner import METRICS


def estimates(value):
    return {m: {"value": value, "low": value - 0.1, "high": value + 0.2} for m in METRICS}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the files of a run directory."""
    monkeypatch.chdir(tmp_path)

    def write(name, **files):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        for stem, content in files.items():
            if isinstance(content, list):
                lines = "".join(json.dumps(line) + "\n" for line in content)
                (folder / f"{stem}.jsonl").write_text(lines)
            else:
                (folder / f"{stem}.json").write_text(json.dumps(content))

    return write
