"""Validation of the files that settings name: images, checkpoints, scorers, run directory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..assets import ASSETS, EMBEDDED, POLICIES, SCORERS
from ..data.open_source import check_source
from ..errors import nearest_allowed, nearest_match, path_not_found
from ..files import checkpoints
from ..policy.families import FAMILIES, misfit
from .problems import Loc, Problem, section_of
from .schema import TRACKERS, Scorer
from .trained_parts import missing_bits

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
WEIGHTS = (".safetensors", ".bin", ".pth")  # that open_clip finds in a folder
Overwrite = bool | str | None  # "finished": a run that came to its end
EMBEDDED_SCORERS = [name.replace("scorer-", "embedded:") for name in SCORERS]


def file_problems(
    settings: dict[str, Any], resume: bool | None, overwrite: Overwrite
) -> Iterator[Problem]:
    """Problems of the files that the settings name; None, None: no check of the run directory."""
    captions = section_of(settings, "mapper").get("captions")
    if isinstance(captions, str) and not Path(captions).expanduser().is_file():
        yield ("mapper", "captions"), path_not_found(Path(captions))
    images = section_of(settings, "data").get("images")
    if isinstance(images, str | dict):
        each = map(str, images) if isinstance(images, dict) else [images]
        yield from ((("data", "images"), why) for why in map(check_source, each) if why)
    elif images is None and settings["profile"] == "full":
        yield ("data", "images"), "profile full needs images: IMAGES=/folder or data.images=/folder"
    model = section_of(settings, "policy").get("model")
    if isinstance(model, str):
        problems = model_problems(model, settings.get("family"))
        yield from ((("policy", "model"), why) for why in problems)
    for key, scorer in section_of(settings, "scorer").items():
        if isinstance(scorer, str) and key in Scorer.model_fields:
            yield from ((("scorer", key), why) for why in scorer_problems(scorer))
    trackers = section_of(settings, "tracking").get("report_to")
    for name in trackers if isinstance(trackers, list) else []:
        if name in TRACKERS and find_spec(name) is None:
            yield ("tracking", "report_to"), f"{name} is not installed here: pip install {name}"
    if settings["profile"] == "scenes":
        yield from _embedded(settings)
    yield from missing_bits(settings)
    if (resume, overwrite) != (None, None) and isinstance(settings["name"], str):
        directory = Path("runs") / settings["name"]
        yield from ((("name",), why) for why in directory_problems(directory, resume, overwrite))


def _embedded(settings: dict[str, Any]) -> Iterator[Problem]:
    """Embedded checkpoints that the settings name and this checkout lacks."""
    named: dict[Loc, str] = {}
    family = settings.get("family")
    if section_of(settings, "policy").get("model") == "embedded" and family in [*FAMILIES]:
        named["policy", "model"] = str(family)
    for key, scorer in section_of(settings, "scorer").items():
        if scorer in EMBEDDED_SCORERS and key in Scorer.model_fields:
            named["scorer", key] = scorer.replace("embedded:", "scorer-")
    for loc, name in named.items():
        if name not in EMBEDDED:
            yield loc, f"no small checkpoint of {name} ships: {' and '.join(POLICIES)} have one"
        elif not any(
            (ASSETS / name).glob("*.safetensors")
        ):  # the folder alone: a build that broke off
            how = "is not in this checkout: run `make scenes-assets`"
            yield loc, f"the embedded checkpoint {name} {how}"


def model_problems(model: str, family: object) -> Iterator[str]:
    """Problems of a policy's checkpoint that can be found without loading it."""
    if model == "embedded":
        return
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if model[:1] in "./~" or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
            yield f"folder {path_not_found(folder)}"
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
        if problem := misfit(kind, family):
            yield f"'{model}' {problem}"


def scorer_problems(scorer: str) -> Iterator[str]:
    """Problems of the name of an image-text encoder."""
    kind, _, rest = scorer.partition(":")
    folder = Path(rest).expanduser()
    if kind == "embedded" and scorer not in EMBEDDED_SCORERS:
        yield f"{scorer!r} is unknown; {nearest_allowed(scorer, EMBEDDED_SCORERS)}"
    elif kind == "local-dir" and not (folder / "open_clip_config.json").is_file():
        yield f"'{rest}' is no folder with an open_clip_config.json"
    elif kind == "local-dir" and not any(p.suffix in WEIGHTS for p in folder.iterdir()):
        yield f"'{rest}' holds no weights ({', '.join(WEIGHTS)}): open_clip would draw random ones"
    elif kind not in ("embedded", "local-dir"):
        yield from _open_clip_problems(scorer)


def _open_clip_problems(scorer: str) -> Iterator[str]:
    """Problems of an ARCHITECTURE/TAG: unknown, or built with another activation than trained.

    open_clip only warns of the second and computes wrong features.
    """
    import open_clip

    tags = {f"{model}/{tag}": (model, tag) for model, tag in open_clip.list_pretrained()}
    usable = [name for name, (model, tag) in tags.items() if _same_activation(model, tag)]
    if scorer in usable:
        return
    nearest = nearest_match(scorer, [*EMBEDDED_SCORERS, *usable])
    if scorer not in tags:
        forms = [*EMBEDDED_SCORERS, "local-dir:PATH", "ARCHITECTURE/TAG"]
        yield (
            f"{scorer!r} is unknown; {nearest_allowed('', forms)}"
            + (f"; nearest: {nearest}" if nearest else "")
        )
        return
    model, tag = tags[scorer]
    if f"{model}-quickgelu/{tag}" in usable:
        nearest = f"{model}-quickgelu/{tag}"
    yield (
        f"{scorer!r} would be built with another activation (GELU or QuickGELU) than it was "
        f"trained with, and its features be wrong; nearest allowed: {nearest}"
    )


def _same_activation(model: str, tag: str) -> bool:
    """Whether open_clip builds the architecture with the activation of the tag's weights."""
    from open_clip import get_model_config
    from open_clip.pretrained import get_pretrained_cfg

    built, trained = get_model_config(model) or {}, get_pretrained_cfg(model, tag)
    return bool(built.get("quick_gelu", False) == trained.get("quick_gelu", False))


def directory_problems(directory: Path, resume: bool | None, overwrite: Overwrite) -> Iterator[str]:
    """Problems of a run directory: in use, or nothing in it to resume."""
    newest = next(iter(checkpoints(directory)), None)
    finished = (directory / "eval.json").is_file()
    if overwrite == "finished":  # what was stopped on its way is not lost by starting it again
        overwrite = newest is None or finished
    if resume and overwrite:
        yield "--resume and --overwrite exclude each other: give one"
    elif resume and not directory.is_dir():
        yield f"nothing to resume: {path_not_found(directory)}"
    elif resume and newest is None:
        yield f"nothing to resume: no checkpoint-* in {directory}"
    elif directory.is_dir() and any(directory.iterdir()) and not (resume or overwrite):
        if newest and finished:
            on = "has a finished run: --resume (make: FLAGS=--resume) evaluates it anew"
        elif newest:
            on = f"was stopped after {newest.name}: --resume (make: FLAGS=--resume) goes on from it"
        else:
            on = "exists"
        yield f"{directory} {on}, --overwrite starts anew, or give another name"
