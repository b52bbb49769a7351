"""Problems of a run file: one sentence for each setting that does not fit the schema."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ..errors import ConfigError, masked, nearest_allowed
from .schema import Run, Section

Loc = tuple[str, ...]
Problem = tuple[Loc, str]  # which setting, what is wrong with it
RENAMED: dict[Loc, str] = {  # an old name is refused with the new one
    ("monitor", "every"): "monitor.interval",
    ("engine", "features"): "engine.vision_cache",
    ("rewards", "sample_support", "least"): "rewards.sample_support.min_samples",
    ("rewards", "claim_check", "most"): "rewards.claim_check.max_claims",
    ("rewards", "region_grounding", "most"): "rewards.region_grounding.max_phrases",
    ("rewards", "visual_dependence", "most"): "rewards.visual_dependence.max_nats",
}


def raise_problems(path: Path, problems: list[Problem]) -> None:
    """ConfigError with one line per problem of this run file, if there is any."""
    if problems:
        lines = [masked(f"  {'.'.join(loc)}: {text}") for loc, text in dict.fromkeys(problems)]
        raise ConfigError("\n".join([f"{path} cannot be run:", *lines]))


def type_problems(settings: dict[str, Any]) -> Iterator[Problem]:
    """Settings that are unknown, renamed, missing or of another type."""
    try:
        Run.model_validate(settings)
    except ValidationError as error:
        for e in error.errors():
            loc = tuple(str(key) for key in e["loc"])
            yield loc, _explain(loc, e["type"], e["input"], e["msg"])


def _explain(loc: Loc, error_type: str, value: object, message: str) -> str:
    field = field_at(loc)
    if error_type == "extra_forbidden":
        parent = field_at(loc[:-1]) if len(loc) > 1 else None
        section: Any = parent.annotation if parent else Run
        return unknown_key(loc, section.model_fields)
    if error_type == "missing":
        return f"missing; allowed: {field.description if field else 'a value'}"
    if error_type == "literal_error" and field:
        choices = [get_args(kind) or (kind,) for kind in get_args(field.annotation)]
        names = [name for kind in choices for name in kind if isinstance(name, str)]
        return f"{value!r} is unknown; {nearest_allowed(value, names)}"
    return f"{value!r}; allowed: {message.split(', ', 1)[-1].removeprefix('Input should be ')}"


def unknown_key(loc: Loc, names: Iterable[str], kind: str = "key") -> str:
    """The sentence for a key that its section has not: its new name, or the names allowed."""
    if loc in RENAMED:
        return f"renamed; write {RENAMED[loc]}"
    return f"unknown {kind}; {nearest_allowed(loc[-1], names)}"


def field_at(loc: Loc) -> FieldInfo | None:
    """The setting of this name, None where there is none."""
    section: Any = Run
    for key in loc[:-1]:
        field = section.model_fields.get(key)
        section = field.annotation if field else None
        if not (isinstance(section, type) and issubclass(section, Section)):
            return None
    return section.model_fields.get(loc[-1])


def section_of(settings: dict[str, Any], key: str) -> dict[str, Any]:
    """A section as it was written, {} where it is no mapping: type_problems reports that."""
    return settings[key] if isinstance(settings.get(key), dict) else {}
