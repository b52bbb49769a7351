"""Files of an export that transformers and PEFT load: adapter or merged weights, processor, ends.

Image budget, chat template and forbidden tokens of a run are saved with its processor and its
generation settings: plain `generate` then writes the run's captions.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import GenerationConfig

from ..evaluation.run_policy import RunPolicy
from ..policy.load import eos_ids, forbidden_ids
from ..policy.lora import CONFIG, WEIGHTS
from .export_base import BASE_FOLDER, Base, check_not_quantised, set_base


def write_processor(policy: RunPolicy, folder: Path) -> None:
    """The processor as the run sets it, and the settings of greedy captions."""
    policy.processor.save_pretrained(folder)
    generation(policy).save_pretrained(folder)


def generation(policy: RunPolicy) -> GenerationConfig:
    """Greedy captions as evaluation writes them."""
    model, processor = policy.model, policy.processor
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=int(policy.run.train["max_completion_length"]),
        eos_token_id=eos_ids(model, processor),
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=forbidden_ids(model, processor) or None,
    )


def write_adapter(base: Base, adapter: Path, folder: Path) -> None:
    """The adapter as training kept it; a base that is only in this package comes along."""
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(adapter / name, folder / name)
    set_base(folder / CONFIG, base)
    if base.kind == "embedded":
        shutil.copytree(base.source, folder / BASE_FOLDER)


def write_merged(policy: RunPolicy, folder: Path) -> None:
    """The base with the adapter added, in the type of the run's weights.

    Added in float32 and rounded once. `policy` cannot be used afterwards.
    """
    check_not_quantised(policy.run, policy.model.get_base_model())
    dtype, settings = policy.model.dtype, generation(policy)
    merged = policy.model.float().merge_and_unload().to(dtype)
    merged.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):  # safetensors lets nobody else read what it writes
        path.chmod((folder / "config.json").stat().st_mode)
    settings.save_pretrained(folder)  # in place of the model's own
