"""YAML, overlays and overrides -> one tree of settings, not looked at yet."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, near, not_found
from .schema import Loc, Problem, field_at

PROFILES = ("auto", "scenes", "full")


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


def choose_profile(asked: object, cuda: bool, problems: list[Problem]) -> tuple[str, str]:
    """The profile that is taken, and why in one line."""
    if asked in ("scenes", "full"):
        return str(asked), f"profile {asked}: asked for"
    if asked != "auto":
        problems.append((("profile",), f"{asked!r} is unknown; {near(asked, PROFILES)}"))
    if cuda:
        return "full", "profile full: there is a CUDA device here"
    return "scenes", "profile scenes: no CUDA device here"


def overlays_of(written: Any, problems: list[Problem]) -> dict[str, dict[str, Any]]:
    """The overlays of the two profiles, {} where there is none."""
    overlays: dict[str, dict[str, Any]] = {"scenes": {}, "full": {}}
    if not isinstance(written or {}, dict):
        problems.append((("profiles",), f"{written!r}; allowed: mappings scenes and full"))
        return overlays
    for name, overlay in (written or {}).items():
        if name not in overlays:
            problems.append((("profiles", str(name)), f"unknown key; {near(name, overlays)}"))
        elif not isinstance(overlay or {}, dict):
            problems.append((("profiles", name), f"{overlay!r}; allowed: a mapping of settings"))
        elif "profile" in (overlay or {}):
            problems.append((("profiles", name, "profile"), "a profile cannot choose the profile"))
        else:
            overlays[name] = overlay or {}
    return overlays


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A new tree: `over` wins, key by key; a reward that it sets to null is gone."""
    merged = deepcopy(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else deepcopy(value)
        if key == "rewards" and both:
            gone = [name for name, parameters in value.items() if parameters is None]
            merged[key] = {k: v for k, v in merged[key].items() if k not in gone}
    return merged


def has(tree: Any, loc: Loc) -> bool:
    """Whether something stands at this place of a tree."""
    for key in loc:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return bool(loc)


def override(settings: dict[str, Any], key: str, text: str) -> list[Problem]:
    """Set one setting from text: YAML, but for a setting of type text just that text."""
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        value = text
    loc = tuple(key.split("."))
    field = field_at(loc)
    if field and field.annotation in (str, str | None) and text[:1] not in ("'", '"'):
        value = None if text in ("null", "~") else text
    if loc[0] == "rewards" and len(loc) > 1:
        rewards = settings.setdefault("rewards", {})
        if not isinstance(rewards, dict):
            return []  # told by shape
        whole = key.removeprefix("rewards.")
        if value is None and whole not in rewards and "." not in whole:
            return [((key,), f"no such reward here; {near(whole, rewards)}")]
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
