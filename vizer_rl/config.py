"""Run file -> Run: YAML < overlay of the profile < overrides; every error in one message."""

from __future__ import annotations

import difflib
import inspect
import json
import math
import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import fields
from enum import EnumMeta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
)
from pydantic.fields import FieldInfo

PROFILES = ("auto", "scenes", "full")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
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

Loc = tuple[str, ...]
Problem = tuple[Loc, str]  # which setting, what is wrong with it


class UserError(ValueError):
    """A mistake of the user's: the command line prints the message alone and exits with 2."""


class ConfigError(UserError):
    """What is wrong with a run file and its overrides, one line per error."""


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError("a plain folder name of letters, digits, '.', '_' and '-'")
    return name


class Section(BaseModel):
    """A part of a run file: typed, nothing unknown in it, unchangeable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Lora(Section):
    r: int = Field(default=16, ge=1, description="rank of the adapter")
    alpha: int = Field(
        default=32, ge=1, description="the adapter's output is multiplied by alpha / r"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout before the adapter")


class Policy(Section):
    model: str = Field(description="`embedded` (ships with the package), a folder or a hub id")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="type of the frozen weights; auto: bfloat16 where CUDA has it"
    )
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        default="auto", description="attention kernel; auto: the fastest that is there"
    )
    image_splitting: bool = Field(
        default=False, description="tile large images: more detail, more tokens"
    )
    lora: Lora = Field(default=Lora(), description="the adapter, all that learns")


class Data(Section):
    images: str | None = Field(
        default=None, description="folder, glob or file; null: the drawn scenes"
    )
    prompt: str = Field(
        default="Describe the image.", description="what is asked about every image"
    )
    limit: int | None = Field(default=None, ge=1, description="at most so many training images")
    heldout: int = Field(default=500, ge=1, description="images kept from training, for evaluation")


class Scorer(Section):
    """Each: `embedded:a`, `embedded:b`, `local-dir:PATH` or open_clip's `ARCHITECTURE/TAG`."""

    train: str = Field(description="the image-text model that rewards use")
    heldout: str = Field(description="the one that only monitor and evaluation use")


class Monitor(Section):
    every: int = Field(
        default=10, ge=0, description="steps between looks at the held-out scorer; 0: never"
    )
    images: int = Field(default=64, ge=1, description="held-out images per look")


class Tracking(Section):
    wandb: Annotated[
        Literal["auto", "online", "offline", "off"],
        BeforeValidator(lambda value: "off" if value is False else value),  # YAML 1.1 reads so
    ] = Field(
        default="auto", description="Weights & Biases; auto: online when logged in, else offline"
    )
    project: str = Field(default="vizer_rl", description="the project there")


class Run(Section):
    """All settings of one run, resolved: the profile is chosen, its overlay applied."""

    family: str = Field(description="a key of vizer_rl.families.FAMILIES")
    algorithm: str = Field(default="grpo", description="a key of vizer_rl.algorithms.ALGORITHMS")
    profile: Literal["scenes", "full"] = Field(description="whose overlay was applied")
    name: Annotated[str, AfterValidator(_folder_name)] = Field(description="runs/NAME is written")
    seed: int = Field(default=0, ge=0, description="seeds adapter, sampling and choice of images")
    policy: Policy = Field(description="the model that learns")
    data: Data = Field(default=Data(), description="the images")
    scorer: Scorer = Field(description="the image-text models")
    rewards: dict[str, dict[str, Any]] = Field(description="{name: {weight: 1.0, parameter: …}}")
    train: dict[str, Any] = Field(
        default={}, description="fields of trl.GRPOConfig by TRL's own names"
    )
    monitor: Monitor = Field(default=Monitor(), description="the look at the held-out scorer")
    tracking: Tracking = Field(default=Tracking(), description="where the curves go")
    _why_profile: str = PrivateAttr("")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.model_dump() == other.model_dump()

    @property
    def why_profile(self) -> str:
        """One line: which profile was taken and why."""
        return self._why_profile

    @property
    def directory(self) -> Path:
        """Where the run is written."""
        return Path("runs") / self.name

    def to_yaml(self) -> str:
        """The run file from which `load` makes an equal Run, on any machine."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def load(
    path: Path,
    overrides: Iterable[str] = (),
    cuda: bool = False,
    resume: bool | None = None,
    overwrite: bool | None = None,
) -> Run:
    """The run that file and overrides (`section.key=value`) describe, checked before anything runs.

    The run directory is checked too unless both flags are None. ConfigError names every mistake.
    """
    written = read_yaml(path)
    pairs = [(key.strip(), eq, text) for key, eq, text in (o.partition("=") for o in overrides)]
    problems: list[Problem] = [((key,), "not section.key=value") for key, eq, _ in pairs if not eq]
    asked = [("", written.pop("profile", "auto"))] + [
        (k, v) for k, e, v in pairs if e and k == "profile"
    ]
    profile, why = _profile(asked[-1][1], cuda, problems)
    overlays = _overlays(written.pop("profiles", None), problems)

    settings = _merge(written, overlays[profile])
    for key, _, text in (p for p in pairs if p[1] and p[0] != "profile"):
        problems += _override(settings, key, text)
    settings |= {"profile": profile}
    if settings.get("name") is None:
        settings["name"] = f"{settings.get('family')}-{profile}"
    given = {key for key, _, _ in pairs}
    for loc, text in _static(settings):
        in_overlay = _has(overlays[profile], loc) and ".".join(loc) not in given
        problems.append((("profiles", profile, *loc) if in_overlay else loc, text))
    other = "full" if profile == "scenes" else "scenes"
    unused = _static(_merge(written, overlays[other])) if overlays[other] else []
    problems += [(("profiles", other, *loc), t) for loc, t in unused if _has(overlays[other], loc)]
    problems += _outside(settings, resume, overwrite)
    _refuse(path, problems)
    for parameters in settings["rewards"].values():
        parameters.setdefault("weight", 1.0)
    for key in ALWAYS:
        settings.setdefault("train", {}).setdefault(key, _trl(key))
    run = Run.model_validate(settings)
    run._why_profile = why
    return run


def read_run(directory: Path) -> Run:
    """The run that was written to a run directory, as it was; nothing else is looked at."""
    path = directory / "config.yaml"
    if not path.is_file():
        raise UserError(f"run {not_found(path if directory.is_dir() else directory)}")
    settings = read_yaml(path)
    _refuse(path, list(_shape(settings)))
    return Run.model_validate(settings)


def _refuse(path: Path, problems: list[Problem]) -> None:
    if problems:
        lines = [f"  {'.'.join(loc)}: {text}" for loc, text in dict.fromkeys(problems)]
        raise ConfigError("\n".join([f"{path} cannot be run:", *lines]))


class _Loader(yaml.SafeLoader):
    """SafeLoader that takes 1e-5 for a number, as YAML 1.1 does not, and no key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                problem = f"key {key.value!r} stands there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        return {str(k): v for k, v in super().construct_mapping(node, deep).items()}


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+|\d*\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping, or ConfigError with line and column."""
    if not path.is_file():
        raise ConfigError(f"run file {not_found(path)}")
    try:
        content = yaml.load(path.read_bytes(), _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
        raise ConfigError(f"{path} is not YAML: {where}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {content!r:.60}; allowed: keys such as `family: smolvlm`")
    return content


def not_found(path: Path) -> str:
    """'PATH' not found, with the nearest name of what is there."""
    part = path.expanduser()
    while not part.parent.is_dir():
        part = part.parent
    names = [p.name for p in part.parent.iterdir()] if not part.exists() else []
    close = difflib.get_close_matches(part.name, names, 1, 0.5)
    return f"'{path}' not found" + (f"; nearest: {part.parent / close[0]}" if close else "")


def _near(bad: object, names: Iterable[str]) -> str:
    """What is allowed, and the nearest of it."""
    close = difflib.get_close_matches(str(bad), names := list(names), 1, 0.5)
    allowed = ", ".join(names) if len(names) < 30 else f"one of {len(names)} names"
    return f"allowed: {allowed or 'nothing'}" + (f"; nearest: {close[0]}" if close else "")


def _profile(asked: object, cuda: bool, problems: list[Problem]) -> tuple[str, str]:
    if asked in ("scenes", "full"):
        return str(asked), f"profile {asked}: asked for"
    if asked != "auto":
        problems.append((("profile",), f"{asked!r} is unknown; {_near(asked, PROFILES)}"))
    if cuda:
        return "full", "profile full: there is a CUDA device here"
    return "scenes", "profile scenes: no CUDA device here"


def _overlays(written: Any, problems: list[Problem]) -> dict[str, dict[str, Any]]:
    """The overlays of the two profiles, {} where there is none."""
    overlays: dict[str, dict[str, Any]] = {"scenes": {}, "full": {}}
    if not isinstance(written or {}, dict):
        problems.append((("profiles",), f"{written!r}; allowed: mappings scenes and full"))
        return overlays
    for name, overlay in (written or {}).items():
        if name not in overlays:
            problems.append((("profiles", str(name)), f"unknown key; {_near(name, overlays)}"))
        elif not isinstance(overlay or {}, dict):
            problems.append((("profiles", name), f"{overlay!r}; allowed: a mapping of settings"))
        elif "profile" in (overlay or {}):
            problems.append((("profiles", name, "profile"), "a profile cannot choose the profile"))
        else:
            overlays[name] = overlay or {}
    return overlays


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A new tree: `over` wins, key by key; a reward that it sets to null is gone."""
    merged = deepcopy(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else deepcopy(value)
        if key == "rewards" and both:
            gone = [name for name, parameters in value.items() if parameters is None]
            merged[key] = {k: v for k, v in merged[key].items() if k not in gone}
    return merged


def _has(tree: Any, loc: Loc) -> bool:
    for key in loc:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return bool(loc)


def _part(settings: dict[str, Any], key: str) -> dict[str, Any]:
    """A section as it was written, {} where it is none: that was told already."""
    return settings[key] if isinstance(settings.get(key), dict) else {}


def _field(loc: Loc) -> FieldInfo | None:
    """The setting of this name, None where there is none."""
    section: Any = Run
    for key in loc[:-1]:
        field = section.model_fields.get(key)
        section = field.annotation if field else None
        if not (isinstance(section, type) and issubclass(section, Section)):
            return None
    return section.model_fields.get(loc[-1])


def _override(settings: dict[str, Any], key: str, text: str) -> list[Problem]:
    """Set one setting from text: YAML, but for a setting of type text just that text."""
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        value = text
    loc = tuple(key.split("."))
    field = _field(loc)
    if field and field.annotation in (str, str | None) and text[:1] not in ("'", '"'):
        value = None if text in ("null", "~") else text
    if loc[0] == "rewards" and len(loc) > 1:
        rewards = settings.setdefault("rewards", {})
        if not isinstance(rewards, dict):
            return []  # told by _shape
        whole = key.removeprefix("rewards.")
        if value is None and whole not in rewards and "." not in whole:
            return [((key,), f"no such reward here; {_near(whole, rewards)}")]
        if value is None and whole in rewards:
            del rewards[whole]
            return []
        named = whole in rewards or isinstance(value, dict) or "." not in whole
        loc = ("rewards", whole) if named else ("rewards", *whole.rsplit(".", 1))
    for part in loc[:-1]:
        if not isinstance(settings.get(part), dict):
            settings[part] = {}
        settings = settings[part]
    settings[loc[-1]] = value
    return []


def _static(settings: dict[str, Any]) -> list[Problem]:
    """What is wrong with the settings themselves, wherever they are run."""
    train = _part(settings, "train")
    problems = [*_shape(settings), *_tables(settings), *_rewards(_part(settings, "rewards"))]
    return [*problems, *_train(train), *_batch(train)]


def _shape(settings: dict[str, Any]) -> Iterator[Problem]:
    try:
        Run.model_validate(settings)
    except ValidationError as error:
        for e in error.errors():
            loc = tuple(str(key) for key in e["loc"])
            yield loc, _explain(loc, e["type"], e["input"], e["msg"])


def _explain(loc: Loc, kind: str, bad: object, message: str) -> str:
    field = _field(loc)
    if kind == "extra_forbidden":
        parent = _field(loc[:-1]) if len(loc) > 1 else None
        section: Any = parent.annotation if parent else Run
        return f"unknown key; {_near(loc[-1], section.model_fields)}"
    if kind == "missing":
        return f"missing; allowed: {field.description if field else 'a value'}"
    if kind == "literal_error" and field:
        return f"{bad!r} is unknown; {_near(bad, get_args(field.annotation))}"
    return f"{bad!r}; allowed: {message.split(', ', 1)[-1].removeprefix('Input should be ')}"


def _tables(settings: dict[str, Any]) -> Iterator[Problem]:
    from .algorithms import ALGORITHMS
    from .families import FAMILIES

    for key, table, default in (("family", FAMILIES, None), ("algorithm", ALGORITHMS, "grpo")):
        name = settings.get(key, default)
        if isinstance(name, str) and name not in table:
            yield (key,), f"{name!r} is unknown; {_near(name, table)}"
    name, vllm = settings.get("family"), _part(settings, "train").get("use_vllm")
    if vllm is True and isinstance(name, str) and name in FAMILIES and not FAMILIES[name].vllm:
        yield ("train", "use_vllm"), f"True; allowed: false, for vLLM breaks {name}'s prompts"


def _rewards(given: dict[str, Any]) -> Iterator[Problem]:
    import rewards

    weights = [p.get("weight", 1.0) for p in given.values() if isinstance(p, dict)]
    if all(weight == 0 for weight in weights) and len(weights) == len(given):
        yield ("rewards",), "no reward has a weight, so nothing would be learnt; set one above 0"
    for name, parameters in given.items():
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
                yield ("rewards", name, key), f"unknown parameter; {_near(key, ['weight', *known])}"
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
        return f"{value!r}; allowed: {KINDS.get(annotation, annotation)}"
    return None


def _train(train: dict[str, Any]) -> Iterator[Problem]:
    from trl import GRPOConfig

    known = {field.name: field for field in fields(GRPOConfig)}
    for key, value in train.items():
        if key in OURS:
            yield ("train", key), f"not to be set here: {OURS[key]}"
        elif key not in known:
            yield ("train", key), f"unknown field of trl.GRPOConfig; {_near(key, known)}"
        elif why := _mismatch(value, known[key].type):
            yield ("train", key), why
        else:
            enums: list[Any] = [t for t in get_args(known[key].type) if isinstance(t, EnumMeta)]
            choices = CHOICES.get(key, tuple(e.value for t in enums for e in t))
            if choices and isinstance(value, str) and value not in choices:
                yield ("train", key), f"{value!r} is unknown; {_near(value, choices)}"


def _trl(key: str) -> Any:
    """TRL's own default of one of its settings."""
    from trl import GRPOConfig

    return getattr(GRPOConfig, key)


def _batch(train: dict[str, Any]) -> Iterator[Problem]:
    """Groups must be whole on every device."""
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps", *ALWAYS)
    size, steps, group, _ = numbers = [train.get(key, _trl(key)) for key in keys]
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


def _outside(
    settings: dict[str, Any], resume: bool | None, overwrite: bool | None
) -> Iterator[Problem]:
    """What is wrong with the files that the settings name."""
    images = _part(settings, "data").get("images")
    if isinstance(images, str):
        yield from ((("data", "images"), why) for why in _images(images))
    elif images is None and settings["profile"] == "full":
        yield ("data", "images"), "profile full needs images: IMAGES=/folder or data.images=/folder"
    model = _part(settings, "policy").get("model")
    if isinstance(model, str) and model != "embedded":
        yield from ((("policy", "model"), why) for why in _model(model, settings.get("family")))
    for key, scorer in _part(settings, "scorer").items():
        if isinstance(scorer, str) and key in Scorer.model_fields:
            yield from ((("scorer", key), why) for why in _scorer(scorer))
    if (resume, overwrite) != (None, None) and isinstance(settings["name"], str):
        directory = Path("runs") / settings["name"]
        yield from ((("name",), why) for why in _directory(directory, resume, overwrite))


def _images(images: str) -> Iterator[str]:
    from . import data

    try:
        if not data._find(images)[1]:
            yield f"'{images}' holds no file with the suffix of an image"
    except data.ImageError as error:
        yield str(error)


def _model(model: str, family: object) -> Iterator[str]:
    from .families import FAMILIES

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


def _scorer(scorer: str) -> Iterator[str]:
    kind, _, rest = scorer.partition(":")
    if kind == "embedded" and rest not in ("a", "b"):
        yield f"{scorer!r} is unknown; {_near(scorer, ('embedded:a', 'embedded:b'))}"
    elif kind == "local-dir" and not (Path(rest).expanduser() / "open_clip_config.json").is_file():
        yield f"'{rest}' is no folder with an open_clip_config.json"
    elif kind not in ("embedded", "local-dir"):
        import open_clip

        tags = [f"{architecture}/{tag}" for architecture, tag in open_clip.list_pretrained()]
        if scorer not in tags:
            forms = ["embedded:a", "embedded:b", "local-dir:PATH", "ARCHITECTURE/TAG"]
            close = difflib.get_close_matches(scorer, [*forms[:2], *tags], 1, 0.5)
            close = [f"; nearest: {tag}" for tag in close]
            yield f"{scorer!r} is unknown; {_near('', forms)}{''.join(close)}"


def _directory(directory: Path, resume: bool | None, overwrite: bool | None) -> Iterator[str]:
    if resume and overwrite:
        yield "--resume and --overwrite exclude each other: give one"
    elif resume and not directory.is_dir():
        yield f"nothing to resume: {not_found(directory)}"
    elif resume and not any(directory.glob("checkpoint-*")):
        yield f"nothing to resume: no checkpoint-* in {directory}"
    elif directory.exists() and not (resume or overwrite):
        yield f"{directory} exists: --resume goes on, --overwrite starts anew, or give another name"
