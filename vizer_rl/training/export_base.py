"""Base of an exported adapter: where it is to be had, and whether it is what the run trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..assets import ASSETS
from ..config.schema import Run
from ..errors import UserError
from ..evaluation.captioning.models import comparable
from ..evaluation.run_policy import RunPolicy
from ..files import read_json
from ..policy.families import FAMILIES
from ..policy.quantise import quantisation
from ..policy.weights_hash import content_key

BASE_FOLDER = "base"  # of an adapter whose base ships with the package: it comes along


@dataclass(frozen=True)
class Base:
    """The model below an adapter. kind: "embedded", "folder" or "hub"; source: folder or hub id."""

    kind: str
    source: str

    @property
    def name(self) -> str:
        """What a card may call it: no path of the machine that trained."""
        return {
            "embedded": f"the small {Path(self.source).name} policy that ships with vizer_rl",
            "folder": f"the folder `{Path(self.source).name}`",
            "hub": self.source,
        }[self.kind]

    @property
    def listed(self) -> str:
        """What adapter_config.json calls it."""
        return BASE_FOLDER if self.kind == "embedded" else self.source

    def load_path(self, folder: Path) -> str:
        """What transformers loads it from, for an adapter in `folder`."""
        return str(folder / BASE_FOLDER) if self.kind == "embedded" else self.source

    def check_public(self, run_directory: Path) -> None:
        """UserError where nobody else could load it."""
        if self.kind == "folder":
            raise UserError(
                f"the base of run '{run_directory}' is a folder of this machine ('{self.source}'), "
                "which nobody could load from the hub: export it with --to merged, then call "
                "--to hub with the same --out"
            )


def base_of(run: Run) -> Base:
    """The base of a run's policy."""
    model = run.policy.model
    if model == "embedded":
        return Base("embedded", str(ASSETS / run.family))
    folder = Path(model).expanduser()
    return Base("folder", str(folder.resolve())) if folder.is_dir() else Base("hub", model)


def base_settings(run: Run, processor: Any, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` takes to load a run's base as the run loads it, beside its type."""
    family = FAMILIES[run.family]
    four_bits = quantisation(family, dtype, run.policy.train.language)
    return {**four_bits, **family.images.model_settings(processor)}


def check_not_quantised(run: Run, model: Any = None) -> None:
    """UserError where merged weights would be rounded to a few bits a second time."""
    if model is None and run.policy.train.language == "qlora":
        quantised = True
    elif model is None:
        config, _ = PreTrainedConfig.get_config_dict(base_of(run).source)
        quantised = config.get("quantization_config") is not None
    else:
        quantised = bool(getattr(model, "is_quantized", False))
    if quantised:
        raise UserError(
            f"the base of run {run.name!r} is quantised: merged weights would be rounded again and "
            "not answer as the run does; export with --to adapter"
        )


def check_base(run: Run, run_directory: Path, policy: RunPolicy) -> bool:
    """Whether the base was compared with the one that the adapter was trained on.

    UserError where it is another. It is not compared where weights or processor come out otherwise
    for another reason: other transformers, or `policy.dtype: auto` on another kind of device.
    """
    path = run_directory / "environment.json"
    trained = read_json(path, dict[str, Any]) if path.is_file() else {}
    if not comparable(run, trained):
        return False
    key = content_key(policy.model.get_base_model(), policy.processor)
    if key != trained.get("policy_hash"):
        raise UserError(
            f"the adapter of run '{run_directory}' was trained on another base: policy.model "
            f"{run.policy.model!r} now has the hash {key}, then {trained.get('policy_hash')} "
            f"({path}): put the weights back that were there"
        )
    return True


def set_base(config: Path, base: Base) -> None:
    """Name the base in a copy of adapter_config.json, where it has the path of the trainer's."""
    content = read_json(config, dict[str, Any])
    content["base_model_name_or_path"] = base.listed
    config.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")
