"""The promises about the code that decay unless something checks them."""

import ast
import inspect
import re
from functools import cache
from pathlib import Path

import pytest

from .conftest import REPO

# From the top of the house down: a room imports only from those below it.
ROOMS = [
    "training",
    "audit",
    "evaluation",
    "algorithms",
    "scoring",
    "config",
    "policy",
    "data",
    "assets",
    "files",
    "errors",
]
PACKAGE = sorted((REPO / "vizer_rl").rglob("*.py"))
REWARDS = sorted((REPO / "rewards").rglob("*.py"))
OTHERS = sorted([*(REPO / "experiments").rglob("*.py"), *(REPO / "benchmarks").rglob("*.py")])
SOURCES = [*PACKAGE, *REWARDS, *OTHERS]

BANNED = {"told", "said", "asked", "made", "seen", "known", "some", "most", "least", "every"}
BANNED |= {"once", "look"}
PROBABILITY = (
    "at_least"  # the dial of rewards.certainty: a bound of a probability, as in statistics
)
BANNED_WHOLE = {*BANNED, "at", "of", "which", "found"}


def name_of(path: Path) -> str:
    return str(path.relative_to(REPO))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> set[str]:
    """Absolute names of the modules and objects that a file imports."""
    package = path.relative_to(REPO).with_suffix("").parts[:-1]
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def room(module: str) -> str | None:
    """The room of a module of ours; None for the command line, which stands above all."""
    parts = module.split(".")
    known = parts[0] == "vizer_rl" and len(parts) > 1 and parts[1] in ROOMS
    return parts[1] if known else None


def upward_imports(path: Path) -> list[str]:
    """What a file of a room imports from rooms above it, or from the command line."""
    own = room(".".join(path.relative_to(REPO).with_suffix("").parts))
    if own is None:
        return []
    return [
        module
        for module in imports(path)
        if module.startswith("vizer_rl.")
        and (room(module) is None or ROOMS.index(room(module)) < ROOMS.index(own))
    ]


def defined_names(tree: ast.AST) -> set[str]:
    """Names of variables, attributes, parameters, functions and classes that a file defines."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.alias) and node.asname:
            names.add(node.asname)
    return names


def banned(names: set[str]) -> set[str]:
    return {
        name
        for name in names - {PROBABILITY}
        if name.lower() in BANNED_WHOLE or BANNED & set(name.lower().strip("_").split("_"))
    }


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_stay_small_and_say_what_they_are(path):
    lines, tree = path.read_text().splitlines(), tree_of(path)
    assert len(lines) <= 250, f"{len(lines)} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is too long"
    assert ast.get_docstring(tree) or not lines, "say what the file is"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_names_are_the_fields_own(path):
    assert not banned(defined_names(tree_of(path)) | {path.stem})


def test_a_banned_name_would_be_noticed():
    code = "class Said:\n    def look(self, at, settings_told):\n        self.seen = some = 1\n"
    assert banned(defined_names(ast.parse(code))) == {
        *("Said", "look", "at", "settings_told", "seen", "some")
    }
    assert not banned(defined_names(ast.parse("def caption(images, lookup, found_files): ...")))


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_a_room_imports_only_downwards(path):
    assert not upward_imports(path)


def test_an_upward_import_would_be_noticed(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "REPO", tmp_path)
    path = tmp_path / "vizer_rl" / "data" / "lazy.py"
    path.parent.mkdir(parents=True)
    path.write_text("from ..training.train import train\nfrom ..errors import UserError\n")
    assert set(upward_imports(path)) == {"vizer_rl.training.train", "vizer_rl.training.train.train"}


def test_every_file_of_the_package_lies_in_a_room():
    loose = {p.name for p in (REPO / "vizer_rl").glob("*.py")}
    names = "__init__ __main__ api arguments cli doctor errors files"
    assert loose == {f"{name}.py" for name in names.split()}
    assert {p.parts[len(REPO.parts) + 1] for p in PACKAGE} - loose <= set(ROOMS)


def test_the_picture_shows_every_file_of_every_room():
    picture = (REPO / "docs" / "architecture.svg").read_text()
    for path in PACKAGE:
        facts = "scene_facts" in path.parts  # shown as a folder
        if path.name not in ("__init__.py", "__main__.py") and not facts:
            assert re.search(rf"\b{path.stem}\b", picture), f"{name_of(path)} is not in the picture"


def test_rewards_and_the_package_import_nothing_from_above_them():
    for path in REWARDS:
        assert not any(name.startswith("vizer_rl") for name in imports(path)), path
    for path in [*PACKAGE, *REWARDS]:
        assert not any(n.split(".")[0] in ("experiments", "benchmarks") for n in imports(path)), (
            path
        )


def test_only_algorithms_and_their_settings_lean_on_trl():
    users = {
        str(p.relative_to(REPO / "vizer_rl"))
        for p in PACKAGE
        if any(n == "trl" or n.startswith("trl.") for n in imports(p))
    }
    allowed = {"config/trainer_settings.py", "config/validate.py"}
    assert {user for user in users if not user.startswith("algorithms/")} <= allowed


def test_nothing_prints_but_the_command_line():
    for path in [*PACKAGE, *REWARDS]:
        if path.name in ("arguments.py", "cli.py", "doctor.py"):
            continue
        calls = [n for n in ast.walk(tree_of(path)) if isinstance(n, ast.Call)]
        assert "print" not in [c.func.id for c in calls if isinstance(c.func, ast.Name)], path


def test_each_method_of_trl_is_overridden_once_and_short():
    from trl import GRPOTrainer

    overrides: dict[str, list[str]] = {}
    for path in sorted((REPO / "vizer_rl" / "algorithms").glob("*.py")):
        for node in ast.walk(tree_of(path)):
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                own = isinstance(method, ast.FunctionDef) and hasattr(GRPOTrainer, method.name)
                if own and not method.name.startswith("__") and "Trainer" in bases(node, path):
                    overrides.setdefault(method.name, []).append(f"{path.name}:{node.name}")
                    assert method.end_lineno - method.lineno < 40, f"{method.name} is long"
    assert {name: where for name, where in overrides.items() if len(where) > 1} == {}
    assert set(PINNED) <= set(overrides), "pinned, but no longer overridden"


def bases(node: ast.ClassDef, path: Path) -> str:
    """Whether a class is a trainer: GRPOTrainer is among its ancestors."""
    import importlib

    module = importlib.import_module(f"vizer_rl.algorithms.{path.stem}")
    from trl import GRPOTrainer

    cls = getattr(module, node.name, object)
    return "Trainer" if inspect.isclass(cls) and issubclass(cls, GRPOTrainer) else ""


GIVEN_FROM_OUTSIDE = {  # attributes of objects of libraries, or of a file's own small classes
    "algorithms/critic.py": "p.grad",  # averaged over devices
    "algorithms/grpo.py": "args.generation_kwargs",  # before TRL reads it
    "audit/__init__.py": "sys.modules[__name__].__class__",  # how Python makes a module callable
    "arguments.py": "rewards.epilog audit.epilog args.overrides",  # argparse
    "cli.py": "args.overrides",  # argparse
    "data/decode.py": "rgb.info",  # Pillow
    "evaluation/metrics/scene_facts/claims.py": "mentions[i].attributes mentions[i].shape",
    "policy/crop_tokens.py": "images.max_patches images.image_grid_pinpoints",  # transformers
    "policy/image_tokens.py": "images.size image_processor.do_image_splitting",  # transformers
    "policy/load.py": "policy.generation_config processor.chat_template",  # transformers
    "policy/lora.py": "model.disable_adapter weight.data",  # PEFT, torch
    "policy/shared_prefix/kv_cache.py": "layer.write_columns",  # a cache's own layers
    "policy/shared_prefix/packing.py": "model.forward",  # transformers
    "policy/trained_parts.py": "copy.forward",  # a layer of PEFT's
    "scoring/reference_policy.py": "module.training",  # torch
    "scoring/reward_functions.py": "function.__name__",  # TRL reads it
    "training/alarms.py": "control.should_training_stop control.should_save",  # transformers
    "training/checkpoint.py": "control.should_save",  # transformers
    "training/score.py": "column.justify",  # rich
}


def attributes_set_outside(path: Path) -> set[str]:
    """Attributes that a file sets on anything but `self`."""
    outside = set()
    for node in ast.walk(tree_of(path)):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in [t for x in targets for t in getattr(x, "elts", [x])]:
            root = target
            while isinstance(root, ast.Attribute | ast.Subscript):
                root = root.value
            own = isinstance(root, ast.Name) and root.id in ("self", "cls")
            if isinstance(target, ast.Attribute) and not own:
                outside.add(ast.unparse(target))
    return outside


def test_no_object_is_given_attributes_from_outside():
    for path in PACKAGE:
        allowed = GIVEN_FROM_OUTSIDE.get(str(path.relative_to(REPO / "vizer_rl")), "").split()
        assert attributes_set_outside(path) <= set(allowed), path


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
