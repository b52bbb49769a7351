"""The promises about the code that decay unless something checks them."""

import ast
import inspect
from pathlib import Path

import pytest

from .conftest import REPO

SOURCES = sorted([*(REPO / "vizer_rl").rglob("*.py"), *(REPO / "rewards").rglob("*.py")])


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {"." * node.level + (node.module or "")}
            names |= {"." * node.level + (node.module or "") + "." + a.name for a in node.names}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPO)))
def test_files_and_functions_stay_small(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 300, f"{len(lines)} lines"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno <= 60, f"{node.name} is too long"
    assert ast.get_docstring(ast.parse(path.read_text())) or not lines, "say what the file is"


def test_rewards_import_nothing_from_the_package():
    for path in (REPO / "rewards").glob("*.py"):
        assert not any(name.startswith("vizer_rl") for name in imported(path)), path


def test_only_algorithms_and_the_checks_of_settings_lean_on_trl():
    users = {
        str(p.relative_to(REPO / "vizer_rl"))
        for p in (REPO / "vizer_rl").rglob("*.py")
        if any(n == "trl" or n.startswith("trl.") for n in imported(p))
    }
    assert {u for u in users if not u.startswith("algorithms/")} <= {"config.py", "checks.py"}


def test_nothing_prints_but_the_command_line():
    for path in (REPO / "vizer_rl").rglob("*.py"):
        if path.name in ("cli.py", "doctor.py", "pretrain.py", "policies.py"):
            continue
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        names = [c.func.id for c in calls if isinstance(c.func, ast.Name)]
        assert "print" not in names, path


def test_the_trl_methods_we_lean_on_are_as_we_know_them():
    from trl import GRPOTrainer

    assert list(inspect.signature(GRPOTrainer.log).parameters) == ["self", "logs", "start_time"]
    told = inspect.getsource(GRPOTrainer._calculate_rewards)
    for part in ("completion_ids=completion_ids_list", "completions=completions", "reward_kwargs"):
        assert part in told
    assert "get_callable_name(reward_funcs[i])" in inspect.getsource(GRPOTrainer.__init__)
    body = inspect.getsource(GRPOTrainer.log)
    for part in ('self._logs["prompt"]', 'self._logs["completion"]', "self.log_completions"):
        assert part in body
    assert "_metrics" in body
