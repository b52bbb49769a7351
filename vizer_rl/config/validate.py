"""Validation of a run's settings beyond their types, before anything runs."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from enum import EnumMeta
from typing import Any, Literal, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..errors import nearest_allowed, printable
from ..policy.families import FAMILIES
from .problems import Loc, Problem, section_of, type_problems, unknown_key
from .schema import TRACKERS, Mapper
from .trained_parts import trained_parts_problems
from .trainer_settings import SETTINGS, GRPOSettings

DERIVED = {  # TRL's settings that our own determine
    **dict.fromkeys(("output_dir", "run_name"), "set by `name`"),
    **dict.fromkeys(("do_eval", "eval_strategy", "eval_steps"), "set by `monitor.interval`"),
    "seed": "set by `seed`",
    "report_to": "set by `tracking.report_to`",
    "project": "set by `tracking.project`",
    "reward_weights": "set by `rewards.NAME.weight`",
    "model_init_kwargs": "set by `policy`",
    "use_cpu": "always true where there is no CUDA",
    "disable_tqdm": "always true, for we draw our own progress bar",
    "remove_unused_columns": "always false, for rewards need the images",
    "load_best_model_at_end": "the monitor keeps the best adapter",
    "resume_from_checkpoint": "set by the flag --resume",
    "hub_token": "it would be written into the run directory; set HF_TOKEN in the environment",
}
SECRET = re.compile(r"://[^/\s:@]*:[^/\s@]+@|\b(hf_|wandb_v1_)\w{20,}")  # a password, a token
CHOICES: dict[str, tuple[str, ...]] = {  # TRL types these as plain text
    "loss_type": ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
}
RESOLVED = ("num_generations", "max_completion_length")  # TRL's defaults, filled in: we read them
TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def setting_problems(settings: dict[str, Any]) -> list[Problem]:
    """Problems of the settings themselves, on whatever machine they are run."""
    train, algorithm = section_of(settings, "train"), settings.get("algorithm", "grpo")
    return [
        *type_problems(settings),
        *name_problems(settings),
        *_texts(settings),
        *_rewards(section_of(settings, "rewards")),
        *_train(train, algorithm),
        *_batch(train),
        *_raft(train),
        *_mapper(settings, train),
        *trained_parts_problems(settings),
        *_alarms(section_of(settings, "monitor")),
        *_trackers(section_of(settings, "tracking").get("report_to")),
    ]


def _texts(settings: Any, loc: Loc = ()) -> Iterator[Problem]:
    """Texts that no file of a run may hold: secrets, and what UTF-8 cannot write."""
    if isinstance(settings, dict | list):
        items = settings.items() if isinstance(settings, dict) else enumerate(settings)
        for key, value in items:
            yield from _texts(key, loc)
            yield from _texts(value, (*loc, str(key)))
    elif isinstance(settings, str) and SECRET.search(settings):
        yield loc, "it holds a password or token, which would be written into the run directory"
    elif isinstance(settings, str) and re.search(r"[\ud800-\udfff]", settings):
        yield loc, f"{printable(settings)!r:.60} has bytes that are not UTF-8"


def name_problems(settings: dict[str, Any]) -> Iterator[Problem]:
    """A family or algorithm that there is not, or a way of sampling that breaks a family."""
    for key, table, default in (("family", FAMILIES, None), ("algorithm", SETTINGS, "grpo")):
        name = settings.get(key, default)
        if isinstance(name, str) and name not in table:
            yield (key,), f"{name!r} is unknown; {nearest_allowed(name, table)}"
    name, vllm = settings.get("family"), section_of(settings, "train").get("use_vllm")
    if vllm is True and isinstance(name, str) and name in FAMILIES and not FAMILIES[name].vllm:
        yield (
            ("train", "use_vllm"),
            f"True; allowed: false, for vLLM breaks {name}'s prompts (trl#6294)",
        )


def _rewards(section: dict[str, Any]) -> Iterator[Problem]:
    import rewards

    weights = [p.get("weight", 1.0) for p in section.values() if isinstance(p, dict)]
    if all(weight == 0 for weight in weights) and len(weights) == len(section):
        yield ("rewards",), "no reward has a weight, so nothing would be learnt; set one above 0"
    names: dict[str, str] = {}  # by the title in the log
    for name, parameters in section.items():
        title = rewards.title(name)
        if names.setdefault(title, name) != name:
            text = f"its name in the log is {title!r}, which {names[title]!r} has too: rename one"
            yield ("rewards", name), text
        if not isinstance(parameters, dict):
            continue
        try:
            reward = rewards.find(name)
        except ValueError as error:
            yield ("rewards", name), str(error)
            continue
        for key, why in _reward_parameters(name, reward, parameters):
            yield ("rewards", name, key), why


def _reward_parameters(
    name: str, reward: Callable[..., Any], parameters: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    """The parameters of one reward that it does not take as they are, each with the reason."""
    weight = parameters.get("weight", 1.0)
    if type(weight) not in (int, float) or not math.isfinite(weight):
        yield "weight", f"{weight!r}; allowed: a finite number"
    elif weight < 0 and getattr(reward, "gates", False):
        yield "weight", f"{weight!r}; allowed for a gate: 0 (only logged) or more"
    is_class = inspect.isclass(reward)
    signature = inspect.signature(reward, eval_str=True).parameters if is_class else {}
    for key, value in parameters.items():
        if key not in signature and key != "weight":
            yield key, unknown_key(("rewards", name, key), ["weight", *signature], "parameter")
        elif key in signature and (why := _mismatch(value, signature[key].annotation)):
            yield key, why
    for key, parameter in signature.items():
        if parameter.default is inspect.Parameter.empty and key not in parameters:
            yield key, "missing, and it has no default"


def _mismatch(value: object, annotation: Any) -> str | None:
    """Why a value from YAML does not fit a type; a list does for a tuple, text for a path."""
    if annotation is inspect.Parameter.empty:
        return None
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
        adapter.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError:
        if get_origin(annotation) is Literal:
            return f"{value!r} is unknown; {nearest_allowed(value, get_args(annotation))}"
        return f"{value!r}; allowed: {TYPE_NAMES.get(annotation, annotation)}"
    return None


def _trackers(names: object) -> Iterator[Problem]:
    for name in names if isinstance(names, list) else []:
        if isinstance(name, str) and name not in TRACKERS:
            text = f"{name!r} is unknown; {nearest_allowed(name, TRACKERS)}"
            yield ("tracking", "report_to"), text


def config_of(algorithm: object) -> Any:
    """The dataclass of an algorithm's `train` settings; GRPO's where the name is wrong."""
    return SETTINGS[algorithm if isinstance(algorithm, str) and algorithm in SETTINGS else "grpo"]


def _train(train: dict[str, Any], algorithm: object) -> Iterator[Problem]:
    allowed = {field.name: field for field in fields(config_of(algorithm))}
    for key, value in train.items():
        if key in DERIVED:
            yield ("train", key), f"not to be set here: {DERIVED[key]}"
        elif key not in allowed:
            yield ("train", key), _unknown(key, algorithm, allowed)
        elif why := _mismatch(value, allowed[key].type) or _outside(value, allowed[key].metadata):
            yield ("train", key), why
        else:
            enums: list[Any] = [t for t in get_args(allowed[key].type) if isinstance(t, EnumMeta)]
            choices = CHOICES.get(key) or tuple(e.value for t in enums for e in t)
            choices = choices or allowed[key].metadata.get("choices", ())
            if choices and isinstance(value, str) and value not in choices:
                yield ("train", key), f"{value!r} is unknown; {nearest_allowed(value, choices)}"


def _mapper(settings: dict[str, Any], train: dict[str, Any]) -> Iterator[Problem]:
    """A caption file needs two settings that agree, and the mapper a loss that uses it."""
    mapper = section_of(settings, "mapper")
    source, file = mapper.get("source", "generated"), mapper.get("captions")
    if source == "captions" and file is None:
        yield ("mapper", "captions"), "missing; allowed: a jsonl file, as source is captions"
    if source != "captions" and file is not None:
        yield ("mapper", "captions"), f"'{file}' is read only with mapper.source=captions"
    used = train.get("alignment_coef", config_of(settings.get("algorithm")).alignment_coef)
    if mapper.items() - Mapper().model_dump().items() and not used:
        yield ("mapper",), "nothing uses it: algorithm=vizer or train.alignment_coef does"


def _unknown(key: str, algorithm: object, allowed: Iterable[str]) -> str:
    """The sentence for a field that this algorithm lacks: the algorithms that have it, if any."""
    others = [n for n in SETTINGS if key in {f.name for f in fields(config_of(n))}]
    if others:
        return f"algorithm {algorithm} has no such setting; algorithm={' or '.join(others)} has it"
    nearest = nearest_allowed(key, allowed)
    return f"unknown field of trl.GRPOConfig and of {algorithm}; {nearest}"


def _outside(value: object, metadata: Mapping[str, Any]) -> str | None:
    """Why a number is out of its field's bounds, if it has any."""
    low, high = metadata.get("low"), metadata.get("high")
    if not isinstance(value, int | float):
        return None
    if (low is None or value >= low) and (high is None or value <= high):
        return None
    bounds = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
    return f"{value!r}; allowed: {' and '.join(bounds)}"


def _batch(train: dict[str, Any]) -> Iterator[Problem]:
    """Batches that do not hold whole groups on every device."""
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps", *RESOLVED)
    size, steps, group, _ = numbers = [train.get(key, getattr(GRPOSettings, key)) for key in keys]
    steps = train.get("steps_per_generation") or steps
    for key, number, minimum in zip(keys, numbers, (1, 1, 2, 1), strict=True):
        if number is None or (type(number) is int and number < minimum):
            yield ("train", key), f"{number!r}; allowed: a whole number of at least {minimum}"
    if not all(type(n) is int and n > 0 for n in (size, steps, group)) or size * steps % group == 0:
        return
    unit = group // math.gcd(group, steps)
    nearest = " or ".join(str(n) for n in (size // unit * unit, size // unit * unit + unit) if n)
    text = f"{size} × {steps} steps per generation is not divisible by num_generations = {group}"
    yield ("train", keys[0]), f"{text}; nearest allowed: {nearest}"


def _raft(train: dict[str, Any]) -> Iterator[Problem]:
    """A best of n that keeps all, or a sampler that has no frozen policy."""
    keep, group = train.get("keep"), train.get("num_generations", GRPOSettings.num_generations)
    if type(keep) is int and type(group) is int and keep >= group > 1:
        text = f"{keep}; allowed: 1 to {group - 1}, below num_generations, which is {group}"
        yield ("train", "keep"), text
    if train.get("sample_from") == "reference" and train.get("use_vllm") is True:
        text = "'reference'; allowed: policy, for vLLM samples from the policy that trains"
        yield ("train", "sample_from"), text


def _alarms(monitor: dict[str, Any]) -> Iterator[Problem]:
    """An end by alarm for which the monitor has nothing to go by, or to go back to."""
    action, loc = monitor.get("on_alarm"), ("monitor", "on_alarm")
    if action in ("stop", "rollback") and monitor.get("interval") == 0:
        yield loc, f"{action!r}; allowed: warn, for alarms need a monitor.interval above 0"
    elif action == "rollback" and monitor.get("keep") == "last":
        yield loc, "'rollback'; allowed: warn, stop, for monitor.keep is last and no best is kept"
