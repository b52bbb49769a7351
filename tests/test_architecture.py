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


PINNED = {
    "_get_per_token_logps_and_entropies": "self model input_ids attention_mask logits_to_keep "
    "batch_size compute_entropy compute_aux_loss pixel_values image_grid_thw num_images "
    "pixel_attention_mask spatial_shapes num_tiles image_sizes token_type_ids mm_token_type_ids "
    "image_position_ids",
    "_generate_and_score_completions": "self inputs",
    "_generate_single_turn": "self prompt_ids images multimodal_fields num_generations "
    "has_tool_images",
    "_tokenize_prompts": "self prompts",
    "_calculate_rewards": "self inputs prompts completions completion_ids_list",
    "_prepare_inputs": "self generation_batch",
    "training_step": "self model inputs num_items_in_batch",
    "get_batch_samples": "self epoch_iterator num_batches device",
}


@pytest.mark.parametrize("name", PINNED)
def test_the_trl_methods_that_packing_overrides_are_as_we_know_them(name):
    from trl import GRPOTrainer

    parameters = inspect.signature(getattr(GRPOTrainer, name)).parameters
    assert list(parameters) == PINNED[name].split()


def test_trl_does_in_between_what_packing_counts_on():
    from trl import GRPOTrainer

    rollout = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    first, second = "old_per_token_logps, _, _ =", "ref_per_token_logps, _, _ ="
    assert rollout.index(first) < rollout.index(second), "old log-probs are asked for first"
    assert "gradient_accumulation_steps % generate_every != 0" in rollout
    assert 'elif "image" in inputs[0]:' in rollout, "rows without images are rows of text"
    loss = inspect.getsource(GRPOTrainer._compute_loss)
    assert 'pixel_values=inputs.get("pixel_values")' in loss
    buffered = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert "self._buffered_inputs[self._step % self.args.steps_per_generation]" in buffered
    turn = inspect.getsource(GRPOTrainer._generate_single_turn)
    for part in ("unwrap_model_for_generation(", "self._dist.summon_full_params"):
        assert part in turn
