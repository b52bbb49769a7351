"""docs/metrics.md and what runs log: every key of one stands in the other."""

import json
import re

import pytest

from ..conftest import REPO

PAGE = (REPO / "docs" / "metrics.md").read_text()
# What each algorithm's run here logs besides: (settings of the run, what its rows' third column is)
RUNS = {
    "grpo": [],
    "rloo": ["algorithm=rloo"],
    "ppo": ["algorithm=ppo", "train.beta_target=1.0"],
    "vizer": ["algorithm=vizer", "mapper.steps=5"],
}
WITH = (  # conditions under which a run in this test logs a key
    "with this reward",
    "with `engine.shared_prefix`",
    "with `train.beta` above 0; not with",
    "with `train.beta` above 0",
    "or with `train.alignment_coef`",
    "with `train.beta_target`",
)


def rows() -> dict[str, str]:
    """Key -> algorithms that log it, for what metrics.jsonl gets."""
    logged = PAGE.split("## On Weights & Biases alone")[0]
    return dict(re.findall(r"^\| `([^`]+)` \| .+ \| ([^|]+) \|$", logged, re.M))


def pattern(key: str) -> str:
    return re.escape(key).replace("<reward>", r"[\w.-]+?")


def applies(algorithms: str, algorithm: str) -> bool:
    """Whether a plain run of this algorithm must log a key whose third column this is."""
    names, _, condition = algorithms.partition(", ")
    if algorithm not in names.split(", ") and names != "all":
        return False
    return not condition or condition.startswith(WITH)


@pytest.fixture(scope="module")
def page():
    return rows()


def test_each_key_stands_on_the_page_once():
    keys = re.findall(r"^\| `([^`]+)` \|", PAGE, re.M)
    assert len(keys) == len(set(keys)) > 60
    for line in re.findall(r"^\| `.*$", PAGE, re.M):
        assert re.fullmatch(r"\| `[^`]+` \| [^|]+\. \| [^|]+ \|", line), line


@pytest.mark.parametrize("algorithm", RUNS)
def test_a_run_logs_what_the_page_says_and_nothing_else(algorithm, command, page, monkeypatch):
    from vizer_rl.training import train

    monkeypatch.setattr(train.evaluate, "evaluate", lambda directory: None)
    directory = command("smolvlm", f"page-{algorithm}", *RUNS[algorithm])
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    logged = {key for line in lines for key in json.loads(line)}
    unknown = [k for k in logged if not any(re.fullmatch(pattern(row), k) for row in page)]
    assert not unknown, "logged, but not in docs/metrics.md"
    missing = [
        row
        for row, algorithms in page.items()
        if applies(algorithms, algorithm) and not any(re.fullmatch(pattern(row), k) for k in logged)
    ]
    assert not missing, "in docs/metrics.md, but not logged"
    others = [
        row
        for row, algorithms in page.items()
        if not algorithms.startswith("all")
        and not applies(algorithms, algorithm)
        and any(re.fullmatch(pattern(row), k) for k in logged)
    ]
    assert not others, "of another algorithm, says docs/metrics.md"
