"""What is wrong with the settings of a run beyond their types, told before anything runs."""

from __future__ import annotations

import difflib
import inspect
import json
import math
import re
from collections.abc import Iterator
from dataclasses import fields
from enum import EnumMeta
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from .algorithms import ALGORITHMS
from .families import ASSETS, FAMILIES
from .settings import Loc, Problem, Scorer, near, not_found, part, shape

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
EMBEDDED_SCORERS = ("embedded:a", "embedded:b")
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


def of_settings(settings: dict[str, Any]) -> list[Problem]:
    """What is wrong with the settings themselves, wherever they are run."""
    train = part(settings, "train")
    problems = [*shape(settings), *_tables(settings), *_rewards(part(settings, "rewards"))]
    return [*problems, *_train(train), *_batch(train)]


def _tables(settings: dict[str, Any]) -> Iterator[Problem]:
    for key, table, default in (("family", FAMILIES, None), ("algorithm", ALGORITHMS, "grpo")):
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
            why = f"its name in the log is {title!r}, which {first[title]!r} has too: rename one"
            yield ("rewards", name), why
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


def _train(train: dict[str, Any]) -> Iterator[Problem]:
    from trl import GRPOConfig

    known = {field.name: field for field in fields(GRPOConfig)}
    for key, value in train.items():
        if key in OURS:
            yield ("train", key), f"not to be set here: {OURS[key]}"
        elif key not in known:
            yield ("train", key), f"unknown field of trl.GRPOConfig; {near(key, known)}"
        elif why := _mismatch(value, known[key].type):
            yield ("train", key), why
        else:
            enums: list[Any] = [t for t in get_args(known[key].type) if isinstance(t, EnumMeta)]
            choices = CHOICES.get(key, tuple(e.value for t in enums for e in t))
            if choices and isinstance(value, str) and value not in choices:
                yield ("train", key), f"{value!r} is unknown; {near(value, choices)}"


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


def of_files(
    settings: dict[str, Any], resume: bool | None, overwrite: bool | None
) -> Iterator[Problem]:
    """What is wrong with the files that the settings name."""
    images = part(settings, "data").get("images")
    if isinstance(images, str):
        yield from ((("data", "images"), why) for why in _images(images))
    elif images is None and settings["profile"] == "full":
        yield ("data", "images"), "profile full needs images: IMAGES=/folder or data.images=/folder"
    model = part(settings, "policy").get("model")
    if isinstance(model, str) and model != "embedded":
        yield from ((("policy", "model"), why) for why in _model(model, settings.get("family")))
    for key, scorer in part(settings, "scorer").items():
        if isinstance(scorer, str) and key in Scorer.model_fields:
            yield from ((("scorer", key), why) for why in scorer_problems(scorer))
    if settings["profile"] == "scenes":
        yield from _embedded(settings)
    if (resume, overwrite) != (None, None) and isinstance(settings["name"], str):
        directory = Path("runs") / settings["name"]
        yield from ((("name",), why) for why in _directory(directory, resume, overwrite))


def _embedded(settings: dict[str, Any]) -> Iterator[Problem]:
    """The embedded checkpoints that the settings name and nobody has built here."""
    named: dict[Loc, str] = {}
    family = settings.get("family")
    if part(settings, "policy").get("model") == "embedded" and family in [*FAMILIES]:
        named["policy", "model"] = str(family)
    for key, scorer in part(settings, "scorer").items():
        if scorer in EMBEDDED_SCORERS and key in Scorer.model_fields:
            named["scorer", key] = scorer.replace("embedded:", "scorer-")
    for loc, name in named.items():
        if not any((ASSETS / name).glob("*.safetensors")):  # half built, it has its folder already
            how = "is not in this checkout: run `make scenes-assets`"
            yield loc, f"the embedded checkpoint {name} {how}"


def _images(images: str) -> Iterator[str]:
    from . import data  # imports `datasets`: slow

    try:
        if not data.find_files(images)[1]:
            yield f"'{images}' holds no file with the suffix of an image"
    except data.ImageError as error:
        yield str(error)


def _model(model: str, family: object) -> Iterator[str]:
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if model[:1] in "./~" or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
            yield f"folder {not_found(folder)}"
        return
    if not any((folder / name).is_file() for name in PROCESSOR_FILES):
        yield f"'{model}' has no processor: neither of {' or '.join(PROCESSOR_FILES)} is there"
    if not (folder / "config.json").is_file():
        yield f"'{model}' has no config.json: not a checkpoint of transformers"
    elif isinstance(family, str) and family in FAMILIES:
        try:
            kind = json.loads((folder / "config.json").read_bytes()).get("model_type")
        except ValueError as error:
            yield f"'{folder / 'config.json'}' is not JSON: {error}"
            return
        if kind not in FAMILIES[family].model_types:
            allowed = " or ".join(FAMILIES[family].model_types)
            yield f"'{model}' is of type {kind!r}; allowed for family {family}: {allowed}"


def scorer_problems(scorer: str) -> Iterator[str]:
    """What is wrong with the name of an image-text encoder."""
    kind, _, rest = scorer.partition(":")
    if kind == "embedded" and scorer not in EMBEDDED_SCORERS:
        yield f"{scorer!r} is unknown; {near(scorer, EMBEDDED_SCORERS)}"
    elif kind == "local-dir" and not (Path(rest).expanduser() / "open_clip_config.json").is_file():
        yield f"'{rest}' is no folder with an open_clip_config.json"
    elif kind not in ("embedded", "local-dir"):
        import open_clip

        tags = [f"{architecture}/{tag}" for architecture, tag in open_clip.list_pretrained()]
        if scorer not in tags:
            forms = [*EMBEDDED_SCORERS, "local-dir:PATH", "ARCHITECTURE/TAG"]
            close = difflib.get_close_matches(scorer, [*EMBEDDED_SCORERS, *tags], 1, 0.5)
            close = [f"; nearest: {tag}" for tag in close]
            yield f"{scorer!r} is unknown; {near('', forms)}{''.join(close)}"


def _directory(directory: Path, resume: bool | None, overwrite: bool | None) -> Iterator[str]:
    if resume and overwrite:
        yield "--resume and --overwrite exclude each other: give one"
    elif resume and not directory.is_dir():
        yield f"nothing to resume: {not_found(directory)}"
    elif resume and not any(directory.glob("checkpoint-*")):
        yield f"nothing to resume: no checkpoint-* in {directory}"
    elif directory.exists() and not (resume or overwrite):
        yield f"{directory} exists: --resume goes on, --overwrite starts anew, or give another name"
