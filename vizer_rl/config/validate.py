"""What is wrong with the settings of a run beyond their types, told before anything runs."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from enum import EnumMeta
from typing import Any, Literal, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..errors import near
from ..policy.families import FAMILIES
from .schema import Mapper, Problem, part, shape
from .trainer_settings import SETTINGS

OURS = {  # TRL's settings that follow from ours
    **dict.fromkeys(("output_dir", "run_name"), "set by `name`"),
    **dict.fromkeys(("do_eval", "eval_strategy", "eval_steps"), "set by `monitor.every`"),
    "seed": "set by `seed`",
    "report_to": "set by `tracking.wandb`",
    "project": "set by `tracking.project`",
    "reward_weights": "set by `rewards.NAME.weight`",
    "model_init_kwargs": "set by `policy`",
    "use_cpu": "always true where there is no CUDA",
    "disable_tqdm": "always true, for we draw our own progress bar",
    "remove_unused_columns": "always false, for rewards need the images",
    "load_best_model_at_end": "the monitor keeps the best adapter",
    "resume_from_checkpoint": "set by the flag --resume",
}
CHOICES: dict[str, tuple[str, ...]] = {  # TRL types these as plain text
    "loss_type": ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
}
ALWAYS = ("num_generations", "max_completion_length")  # filled in: other modules read them
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def setting_problems(settings: dict[str, Any]) -> list[Problem]:
    """What is wrong with the settings themselves, wherever they are run."""
    train = part(settings, "train")
    problems = [*shape(settings), *_tables(settings), *_rewards(part(settings, "rewards"))]
    algorithm = settings.get("algorithm", "grpo")
    return [*problems, *_train(train, algorithm), *_batch(train), *_mapper(settings, train)]


def _tables(settings: dict[str, Any]) -> Iterator[Problem]:
    for key, table, default in (("family", FAMILIES, None), ("algorithm", SETTINGS, "grpo")):
        name = settings.get(key, default)
        if isinstance(name, str) and name not in table:
            yield (key,), f"{name!r} is unknown; {near(name, table)}"
    name, vllm = settings.get("family"), part(settings, "train").get("use_vllm")
    if vllm is True and isinstance(name, str) and name in FAMILIES and not FAMILIES[name].vllm:
        yield ("train", "use_vllm"), f"True; allowed: false, for vLLM breaks {name}'s prompts"


def _rewards(given: dict[str, Any]) -> Iterator[Problem]:
    import rewards

    weights = [p.get("weight", 1.0) for p in given.values() if isinstance(p, dict)]
    if all(weight == 0 for weight in weights) and len(weights) == len(given):
        yield ("rewards",), "no reward has a weight, so nothing would be learnt; set one above 0"
    first: dict[str, str] = {}
    for name, parameters in given.items():
        title = rewards.title(name)
        if first.setdefault(title, name) != name:
            told = f"its name in the log is {title!r}, which {first[title]!r} has too: rename one"
            yield ("rewards", name), told
        if not isinstance(parameters, dict):
            continue
        try:
            found = rewards.find(name)
        except ValueError as error:
            yield ("rewards", name), str(error)
            continue
        weight = parameters.get("weight", 1.0)
        if type(weight) not in (int, float) or not math.isfinite(weight):
            yield ("rewards", name, "weight"), f"{weight!r}; allowed: a finite number"
        known = inspect.signature(found, eval_str=True).parameters if inspect.isclass(found) else {}
        for key, value in parameters.items():
            if key not in known and key != "weight":
                yield ("rewards", name, key), f"unknown parameter; {near(key, ['weight', *known])}"
            elif key in known and (why := _mismatch(value, known[key].annotation)):
                yield ("rewards", name, key), why
        for key in known:
            if known[key].default is inspect.Parameter.empty and key not in parameters:
                yield ("rewards", name, key), "missing, and it has no default"


def _mismatch(value: object, annotation: Any) -> str | None:
    """Why a value from YAML does not fit a type; a list does for a tuple, text for a path."""
    if annotation is inspect.Parameter.empty:
        return None
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
        adapter.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError:
        if get_origin(annotation) is Literal:
            return f"{value!r} is unknown; {near(value, get_args(annotation))}"
        return f"{value!r}; allowed: {KINDS.get(annotation, annotation)}"
    return None


def config_of(algorithm: object) -> Any:
    """The dataclass of an algorithm's `train` settings; GRPO's where the name is wrong."""
    return SETTINGS[algorithm if isinstance(algorithm, str) and algorithm in SETTINGS else "grpo"]


def _train(train: dict[str, Any], algorithm: object) -> Iterator[Problem]:
    known = {field.name: field for field in fields(config_of(algorithm))}
    for key, value in train.items():
        if key in OURS:
            yield ("train", key), f"not to be set here: {OURS[key]}"
        elif key not in known:
            yield ("train", key), _unknown(key, algorithm, known)
        elif why := _mismatch(value, known[key].type) or _outside(value, known[key].metadata):
            yield ("train", key), why
        else:
            enums: list[Any] = [t for t in get_args(known[key].type) if isinstance(t, EnumMeta)]
            choices = CHOICES.get(key) or tuple(e.value for t in enums for e in t)
            choices = choices or known[key].metadata.get("choices", ())
            if choices and isinstance(value, str) and value not in choices:
                yield ("train", key), f"{value!r} is unknown; {near(value, choices)}"


def _mapper(settings: dict[str, Any], train: dict[str, Any]) -> Iterator[Problem]:
    """Captions are read only where two settings ask for it and something learns from them."""
    told = part(settings, "mapper")
    source, file = told.get("source", "generated"), told.get("captions")
    if source == "captions" and file is None:
        yield ("mapper", "captions"), "missing; allowed: a jsonl file, as source is captions"
    if source != "captions" and file is not None:
        yield ("mapper", "captions"), f"'{file}' is read only with mapper.source=captions"
    used = train.get("alignment_coef", config_of(settings.get("algorithm")).alignment_coef)
    if told.items() - Mapper().model_dump().items() and not used:
        yield ("mapper",), "nothing uses it: algorithm=vizer or train.alignment_coef does"


def _unknown(key: str, algorithm: object, known: Iterable[str]) -> str:
    """A field that this algorithm has not, with the algorithms that have it."""
    others = [n for n in SETTINGS if key in {f.name for f in fields(config_of(n))}]
    if others:
        return f"algorithm {algorithm} has no such setting; algorithm={' or '.join(others)} has it"
    return f"unknown field of trl.GRPOConfig and of {algorithm}; {near(key, known)}"


def _outside(value: object, metadata: Mapping[str, Any]) -> str | None:
    """Why a number is out of its field's bounds, if it has any."""
    low, high = metadata.get("low"), metadata.get("high")
    if not isinstance(value, int | float):
        return None
    if (low is None or value >= low) and (high is None or value <= high):
        return None
    bounds = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
    return f"{value!r}; allowed: {' and '.join(bounds)}"


def trl_default(key: str) -> Any:
    """TRL's own default of one of its settings."""
    from trl import GRPOConfig

    return getattr(GRPOConfig, key)


def _batch(train: dict[str, Any]) -> Iterator[Problem]:
    """Groups must be whole on every device."""
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps", *ALWAYS)
    size, steps, group, _ = numbers = [train.get(key, trl_default(key)) for key in keys]
    steps = train.get("steps_per_generation") or steps
    for key, number, least in zip(keys, numbers, (1, 1, 2, 1), strict=True):
        if number is None or (type(number) is int and number < least):
            yield ("train", key), f"{number!r}; allowed: a whole number of at least {least}"
    if not all(type(n) is int and n > 0 for n in (size, steps, group)) or size * steps % group == 0:
        return
    unit = group // math.gcd(group, steps)
    nearest = " or ".join(str(n) for n in (size // unit * unit, size // unit * unit + unit) if n)
    how = f"{size} × {steps} steps per generation is not divisible by num_generations = {group}"
    yield ("train", keys[0]), f"{how}; nearest allowed: {nearest}"
