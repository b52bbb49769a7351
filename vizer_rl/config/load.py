"""Run file -> Run: YAML < overlay of the profile < overrides; all errors in one message."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..assets import RUN_FILES
from ..errors import ConfigError, path_not_found
from .overrides import apply_override, choose_profile, contains, merge, profile_overlays, read_yaml
from .problems import Problem, raise_problems
from .recipe import add_recipe
from .schema import Run
from .trainer_settings import GRPOSettings
from .validate import RESOLVED, setting_problems
from .validate_files import Overwrite, directory_problems, file_problems


def load_run(
    path: Path,
    overrides: Iterable[str] = (),
    cuda: bool = False,
    resume: bool | None = None,
    overwrite: Overwrite = None,
) -> Run:
    """The run that file and overrides (`section.key=value`) describe, checked before anything runs.

    The run directory is checked too unless both flags are None. ConfigError lists all mistakes.
    """
    tree = read_yaml(path := run_file(path))
    pairs = [(key.strip(), eq, text) for key, eq, text in (o.partition("=") for o in overrides)]
    problems: list[Problem] = [((key,), "not section.key=value") for key, eq, _ in pairs if not eq]
    requested = [tree.pop("profile", "auto")]
    requested += [text for key, eq, text in pairs if eq and key == "profile"]
    profile, why_profile = choose_profile(requested[-1], cuda, problems)
    overlays = profile_overlays(tree.pop("profiles", None), problems)

    settings = merge(tree, overlays[profile])
    for key, _, text in pairs:
        problems += apply_override(settings, key, text) if key == "recipe" else []
    add_recipe(settings, profile)
    for key, eq, text in pairs:
        if eq and key != "profile":
            problems += apply_override(settings, key, text)
    settings |= {"profile": profile}
    if settings.get("name") is None:
        settings["name"] = f"{settings.get('family')}-{profile}"
    overridden = {key for key, _, _ in pairs}
    for loc, text in setting_problems(settings):
        in_overlay = contains(overlays[profile], loc) and ".".join(loc) not in overridden
        problems.append((("profiles", profile, *loc) if in_overlay else loc, text))
    other = "full" if profile == "scenes" else "scenes"
    unused = setting_problems(merge(tree, overlays[other])) if overlays[other] else []
    for loc, text in unused:
        if contains(overlays[other], loc):
            problems.append((("profiles", other, *loc), text))
    problems += file_problems(settings, resume, overwrite)
    raise_problems(path, problems)
    for parameters in settings["rewards"].values():
        parameters.setdefault("weight", 1.0)
    for key in RESOLVED:
        settings.setdefault("train", {}).setdefault(key, getattr(GRPOSettings, key))
    return Run.model_validate(settings, context={"why_profile": why_profile})


def run_file(path: Path) -> Path:
    """The file itself or, where there is none of a plain name, the one that ships by that name."""
    shipped = RUN_FILES / path.name
    if path.exists() or not shipped.is_file():
        return path
    if path.parent != Path():
        here = f"the package has one: write {path.name}"
        raise ConfigError(f"run file {path_not_found(path)}; {here}")
    return shipped


def check_directory(run: Run, resume: bool, overwrite: Overwrite) -> None:
    """ConfigError where the directory of a run is in use, or there is nothing to resume in it."""
    problems = directory_problems(run.directory, resume, overwrite)
    raise_problems(run.directory, [(("name",), why) for why in problems])
