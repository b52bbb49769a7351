"""docs/metrics.md and what runs log: every key of one stands in the other."""

import json
import re

import pytest

from ..conftest import REPO

PAGE = (REPO / "docs" / "metrics.md").read_text()
WITH = (  # conditions under which a run of two steps logs a key
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


def test_each_key_stands_on_the_page_once():
    keys = re.findall(r"^\| `([^`]+)` \|", PAGE, re.M)
    assert len(keys) == len(set(keys)) > 60
    for line in re.findall(r"^\| `.*$", PAGE, re.M):
        assert re.fullmatch(r"\| `[^`]+` \| [^|]+\. \| [^|]+ \|", line), line


def check_page(directory, algorithm):
    """A run of this algorithm logged what the page says, and nothing else."""
    page, lines = rows(), (directory / "metrics.jsonl").read_text().splitlines()
    logged = {key for line in lines for key in json.loads(line)}
    unknown = [k for k in logged if not any(re.fullmatch(pattern(row), k) for row in page)]
    assert not unknown, "logged, but not in docs/metrics.md"
    there = {row for row in page if any(re.fullmatch(pattern(row), k) for k in logged)}
    own = {row for row, algorithms in page.items() if applies(algorithms, algorithm)}
    assert not own - there, "in docs/metrics.md, but not logged"
    shared = {row for row, algorithms in page.items() if algorithms.startswith("all")}
    assert not there - own - shared, "of another algorithm, says docs/metrics.md"


def test_a_key_too_many_or_too_few_would_be_noticed(tmp_path):
    plain = {row.replace("<reward>", "x") for row, a in rows().items() if applies(a, "grpo")}
    for keys, complaint in (
        (plain, None),
        (plain - {"kl"}, "but not logged"),
        (plain | {"klops"}, "but not in"),
        (plain | {"value_loss"}, "of another algorithm"),
    ):
        (tmp_path / "metrics.jsonl").write_text(json.dumps(dict.fromkeys(keys, 0.0)))
        if complaint is None:
            check_page(tmp_path, "grpo")
        else:
            with pytest.raises(AssertionError, match=complaint):
                check_page(tmp_path, "grpo")
