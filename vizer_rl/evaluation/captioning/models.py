"""What captions: a trained run, or a model as it is; and the key that tells its captions apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...config.schema import Data, Policy, Run, Scorer
from ...config.validate_files import model_problems, scorer_problems
from ...errors import UserError
from ...files import read_json, whole
from ...policy.load import device, family_of
from ...policy.lora import CONFIG, WEIGHTS
from ...policy.weights_hash import content_key
from ..run_policy import RunPolicy, trained_run

MODEL_TOKENS = 64  # of a caption of a model without a run, as profile full has it
MODEL_PROMPT = "Describe the image in one sentence."
OFF = "off"  # in place of a held-out scorer


def captioning_run(
    run_directory: Path | None, model: str, prompt: str, max_tokens: int | None, scorer: str
) -> Run:
    """The settings to caption with: those of the run or, where there is none, of the model.

    prompt, max_tokens, scorer: in place of the run's, where they are given. UserError where the
    run has no adapter, or the model cannot be had.
    """
    run = trained_run(run_directory) if run_directory else _model_run(model)
    if prompt:
        run = run.model_copy(update={"data": run.data.model_copy(update={"prompt": prompt})})
    if max_tokens:
        run = run.model_copy(update={"train": {**run.train, "max_completion_length": max_tokens}})
    if scorer:
        run = run.model_copy(update={"scorer": run.scorer.model_copy(update={"heldout": scorer})})
    if run.scorer.heldout != OFF:
        for problem in scorer_problems(run.scorer.heldout):
            raise UserError(f"the held-out scorer {problem}; --scorer off captions without one")
    return run


def _model_run(model: str) -> Run:
    """Settings of a model without a run; no scorer is chosen for one that does not ship here."""
    embedded = model == "embedded"
    for problem in model_problems(model, None):
        raise UserError(f"--model {problem}")
    scorers = ("embedded:a", "embedded:b") if embedded else (OFF, OFF)
    return Run(
        family="smolvlm" if embedded else family_of(model),
        profile="scenes" if embedded else "full",
        name="model",
        policy=Policy(model=model, dtype="float32" if embedded else "auto"),
        data=Data() if embedded else Data(prompt=MODEL_PROMPT),
        scorer=Scorer(train=scorers[0], heldout=scorers[1]),
        rewards={},
        train={"max_completion_length": MODEL_TOKENS, "num_generations": 8},
    )


def load_captioner(run: Run, run_directory: Path | None) -> RunPolicy:
    """The policy of these settings; UserError where the adapter was trained on another base."""
    policy = RunPolicy(run, run_directory)
    path = run_directory / "environment.json" if run_directory else None
    if path is None or run_directory is None or not path.is_file():
        return policy
    environment = read_json(path, dict[str, Any])
    key = content_key(policy.model, policy.processor)
    if environment.get("policy_hash") in (None, key):
        return policy
    config = read_json(whole(run_directory / "adapter") / CONFIG, dict[str, Any])
    base = Path(str(config.get("base_model_name_or_path"))).name
    same_name = run.policy.model == "embedded" or Path(run.policy.model).name == base
    if same_name and not comparable(run, environment):
        return policy
    raise UserError(
        f"the adapter of run '{run_directory}' was trained on other weights than those of "
        f"policy.model {run.policy.model!r}: it is for {base!r} as it was then"
    )


def comparable(run: Run, environment: Mapping[str, Any]) -> bool:
    """Whether the hash of a run's base can be held against that in its environment.json.

    Another transformers may have other settings of the processor, and under `policy.dtype: auto`
    another kind of device another type of weights; the hash has both in it.
    """
    on_cpu = environment.get("device") == "cpu"
    alike = environment.get("transformers") == version("transformers")
    return alike and (run.policy.dtype != "auto" or on_cpu == (device().type == "cpu"))


def captions_key(run: Run, run_directory: Path | None, *more: object) -> str:
    """16 hexadecimal digits for a policy, its settings and all else that captions depend on."""
    digest = blake2b(digest_size=8)
    if run_directory is not None:
        path = whole(run_directory / "adapter") / WEIGHTS
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise UserError(f"'{path}' cannot be read: {error.strerror}") from error
    elif run.policy.model != "embedded":
        for file in sorted(Path(run.policy.model).expanduser().glob("*.safetensors")):
            state = file.stat()
            digest.update(f"{file.name} {state.st_size} {state.st_mtime_ns}\n".encode())
    settings = [
        run.policy.model_dump(exclude={"lora", "instruct"}),
        run.data.prompt,
        run.train["max_completion_length"],
        run.scorer.heldout,
        *more,
    ]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()
