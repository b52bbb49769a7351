"""YAML, overlays and overrides -> one tree of settings, not validated yet."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, nearest_allowed, path_not_found
from .problems import Loc, Problem, field_at
from .schema import ImageSources

PROFILES = ("auto", "scenes", "full")


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-5 as a number, unlike YAML 1.1, and refuses duplicate keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key, _ in node.value:
            if key.value in keys and isinstance(key, yaml.ScalarNode):
                problem = f"key {key.value!r} stands there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            keys |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        return {str(k): v for k, v in super().construct_mapping(node, deep).items()}


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+|\d*\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping, or ConfigError with line and column."""
    if not path.is_file():
        raise ConfigError(f"run file {path_not_found(path)}")
    try:
        content = yaml.load(path.read_bytes(), _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
        raise ConfigError(f"{path} is not YAML: {where}: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {content!r:.60}; allowed: keys such as `family: smolvlm`")
    return content


def choose_profile(requested: object, cuda: bool, problems: list[Problem]) -> tuple[str, str]:
    """The profile that is used, and why in one line."""
    if requested in ("scenes", "full"):
        return str(requested), f"profile {requested}: asked for"
    if requested != "auto":
        allowed = nearest_allowed(requested, PROFILES)
        problems.append((("profile",), f"{requested!r} is unknown; {allowed}"))
    if cuda:
        return "full", "profile full: there is a CUDA device here"
    return "scenes", "profile scenes: no CUDA device here"


def profile_overlays(profiles: Any, problems: list[Problem]) -> dict[str, dict[str, Any]]:
    """The overlay of each profile, {} where the run file has none."""
    overlays: dict[str, dict[str, Any]] = {"scenes": {}, "full": {}}
    if not isinstance(profiles or {}, dict):
        problems.append((("profiles",), f"{profiles!r}; allowed: mappings scenes and full"))
        return overlays
    for name, overlay in (profiles or {}).items():
        if name not in overlays:
            text = f"unknown key; {nearest_allowed(name, overlays)}"
            problems.append((("profiles", str(name)), text))
        elif not isinstance(overlay or {}, dict):
            problems.append((("profiles", name), f"{overlay!r}; allowed: a mapping of settings"))
        elif "profile" in (overlay or {}):
            problems.append((("profiles", name, "profile"), "a profile cannot choose the profile"))
        else:
            overlays[name] = overlay or {}
    return overlays


def merge(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """A new tree: the overlay wins, key by key; a reward that it sets to null is removed."""
    merged = deepcopy(base)
    for key, value in overlay.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else deepcopy(value)
        if key == "rewards" and both:
            removed = [name for name, parameters in value.items() if parameters is None]
            merged[key] = {k: v for k, v in merged[key].items() if k not in removed}
    return merged


def contains(tree: Any, loc: Loc) -> bool:
    """Whether a tree of settings has a value at this location."""
    for key in loc:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return bool(loc)


def apply_override(settings: dict[str, Any], key: str, text: str) -> list[Problem]:
    """Set one setting, in place, from text: read as YAML unless the setting's type is text."""
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError):
        value = text
    loc = tuple(key.split("."))
    field = field_at(loc)
    several = isinstance(value, dict) and text.startswith("{")  # weights of image sources
    plain = (str, str | None) if several else (str, str | None, ImageSources)
    if field and field.annotation in plain and text[:1] not in ("'", '"'):
        value = None if text in ("null", "~") else text
    if loc[0] == "rewards" and len(loc) > 1:
        rewards = settings.setdefault("rewards", {})
        if not isinstance(rewards, dict):
            return []  # type_problems reports it
        name = key.removeprefix("rewards.")
        if value is None and name not in rewards and "." not in name:
            return [((key,), f"no such reward here; {nearest_allowed(name, rewards)}")]
        if value is None and name in rewards:
            del rewards[name]
            return []
        is_reward = name in rewards or isinstance(value, dict) or "." not in name
        loc = ("rewards", name) if is_reward else ("rewards", *name.rsplit(".", 1))
    for section in loc[:-1]:
        if not isinstance(settings.get(section), dict):
            settings[section] = {}
        settings = settings[section]
    settings[loc[-1]] = value
    return []
