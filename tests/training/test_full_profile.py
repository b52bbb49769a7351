"""The full profile without its weights: real processors and configs, random weights, photos."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from vizer_rl import cli

from ..conftest import FIXTURES, REPO

PHOTOS, PROCESSORS = FIXTURES / "photos", FIXTURES / "processors"
FOLDERS = {"smolvlm": "granite-docling-258m", "qwen2vl": "qwen2-vl-2b-instruct"}
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
VISION = {
    "smolvlm": {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4},
    "qwen2vl": {"embed_dim": 64, "hidden_size": 64, "num_heads": 4, "mlp_ratio": 2},
}

pytestmark = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="../shared/fixtures (real processors, photographs) is not here"
)


def checkpoint(family, folder, *, real_width):
    """A model folder as from the hub: real processor and config, one layer, random weights."""
    source = PROCESSORS / FOLDERS[family]
    AutoProcessor.from_pretrained(source).save_pretrained(folder)
    config = AutoConfig.from_pretrained(source)
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers = 1
    text.layer_types = None if getattr(text, "layer_types", None) is None else ["full_attention"]
    setattr(vision, "depth" if family == "qwen2vl" else "num_hidden_layers", 1)
    if real_width:
        vision.hidden_size = text.hidden_size if family == "qwen2vl" else vision.hidden_size
    else:
        text.update({k: v for k, v in TINY.items() if hasattr(text, k)})
        text.num_key_value_heads = 2
        vision.update(VISION[family])
        if family == "qwen2vl":
            text.rope_parameters = {**text.rope_parameters, "mrope_section": [2, 3, 3]}
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.save_pretrained(folder)


def train(family, model, workplace, *more):
    name = f"full-{family}"
    settings = [
        "profile=full",
        f"name={name}",
        f"policy.model={model}",
        "policy.dtype=float32",
        f"data.images={PHOTOS}",
        "data.heldout=2",
        "monitor.images=2",
        "scorer.train=embedded:a",
        "scorer.heldout=embedded:b",
        "tracking.wandb=off",
        "rewards.self_retrieval.hard=8",
        "rewards.self_retrieval.random=8",
        "rewards.alignment.steps=5",
        "data.limit=20",
        "train.bf16=false",
        "train.gradient_checkpointing=false",
        "train.max_steps=2",
        "train.num_generations=2",
        "train.per_device_train_batch_size=2",
        "train.gradient_accumulation_steps=1",
        "train.max_completion_length=6",
        *more,
    ]
    file = str(REPO / "experiments" / f"{family}.yaml")
    assert cli.main(["train", file, *settings, "--overwrite"]) == 0
    directory = workplace / "runs" / name
    steps = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [s["step"] for s in steps] == [1, 2]
    assert json.loads((directory / "eval.json").read_text())["n_images"] == 2


@pytest.mark.parametrize("family", sorted(FOLDERS))
def test_two_steps_with_the_real_processor(family, workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(workplace)
    checkpoint(family, tmp_path, real_width=False)
    train(family, tmp_path, workplace)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FOLDERS))
def test_two_steps_at_the_real_width(family, workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(workplace)
    checkpoint(family, tmp_path, real_width=True)
    train(family, tmp_path, workplace)


@pytest.mark.slow
def test_two_steps_with_tiles(workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(workplace)
    checkpoint("smolvlm", tmp_path, real_width=False)
    train("smolvlm", tmp_path, workplace, "policy.image_splitting=true")


@pytest.mark.gpu
@pytest.mark.parametrize("family", sorted(FOLDERS))
def test_two_steps_in_bf16_on_the_gpu(family, workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(workplace)
    checkpoint(family, tmp_path, real_width=True)
    more = ("policy.dtype=bfloat16", "train.bf16=true", "train.gradient_checkpointing=true")
    train(family, tmp_path, workplace, *more)
