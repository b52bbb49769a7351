"""Run file -> Run: YAML < overlay of the profile < overrides; every error in one message."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import ConfigError
from .overrides import choose_profile, has, merge, overlays_of, override, read_yaml
from .schema import Problem, Run
from .validate import ALWAYS, setting_problems, trl_default
from .validate_files import file_problems


def load_run(
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
    profile, why = choose_profile(asked[-1][1], cuda, problems)
    overlays = overlays_of(written.pop("profiles", None), problems)

    settings = merge(written, overlays[profile])
    for key, _, text in (p for p in pairs if p[1] and p[0] != "profile"):
        problems += override(settings, key, text)
    settings |= {"profile": profile}
    if settings.get("name") is None:
        settings["name"] = f"{settings.get('family')}-{profile}"
    given = {key for key, _, _ in pairs}
    for loc, text in setting_problems(settings):
        in_overlay = has(overlays[profile], loc) and ".".join(loc) not in given
        problems.append((("profiles", profile, *loc) if in_overlay else loc, text))
    other = "full" if profile == "scenes" else "scenes"
    unused = setting_problems(merge(written, overlays[other])) if overlays[other] else []
    problems += [(("profiles", other, *loc), t) for loc, t in unused if has(overlays[other], loc)]
    problems += file_problems(settings, resume, overwrite)
    refuse(path, problems)
    for parameters in settings["rewards"].values():
        parameters.setdefault("weight", 1.0)
    for key in ALWAYS:
        settings.setdefault("train", {}).setdefault(key, trl_default(key))
    run = Run.model_validate(settings)
    run._why_profile = why
    return run


def refuse(path: Path, problems: list[Problem]) -> None:
    if problems:
        lines = [f"  {'.'.join(loc)}: {text}" for loc, text in dict.fromkeys(problems)]
        raise ConfigError("\n".join([f"{path} cannot be run:", *lines]))
