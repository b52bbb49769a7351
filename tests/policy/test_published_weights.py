"""Checkpoints as published: every tensor of their files finds its parameter, LoRA its modules."""

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, Idefics3Config, Qwen2VLConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import rename_source_key

from vizer_rl.assets import POLICIES
from vizer_rl.policy.families import FAMILIES

WIDTHS = {  # of the text and the vision model, as the checkpoints' configs have them
    "smolvlm": (
        dict(
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=24,
            num_attention_heads=32,
            num_key_value_heads=32,
            vocab_size=49155,
        ),
        dict(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=27,
            num_attention_heads=16,
            patch_size=14,
            image_size=384,
        ),
    ),
    "qwen2vl": (
        dict(
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            vocab_size=151936,
        ),
        dict(embed_dim=1280, hidden_size=1536, depth=32, num_heads=16, mlp_ratio=4),
    ),
}
TINY = {
    "smolvlm": (
        dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=2),
        dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, image_size=28),
    ),
    "qwen2vl": (
        dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=2),
        dict(embed_dim=16, hidden_size=16, num_heads=2, mlp_ratio=2),
    ),
}
LAYERS = {"smolvlm": ("num_hidden_layers", (24, 27)), "qwen2vl": ("depth", (28, 32))}
PARAMETERS = {"smolvlm": 2_246_272_880, "qwen2vl": 2_208_985_600}
LORA = {"smolvlm": (336, 36.2e6), "qwen2vl": (392, 36.9e6)}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]
TEXT = [f"self_attn.{name}.weight" for name in PROJECTIONS]
TEXT += [f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
TEXT += ["input_layernorm.weight", "post_attention_layernorm.weight"]


def parts(*names):
    """Weight and bias of each."""
    return [f"{name}.{part}" for name in names for part in ("weight", "bias")]


def published(family, text_layers, vision_layers):
    """Published name -> parameter of the model, of every tensor in a checkpoint's files."""
    if family == "smolvlm":
        vision = parts(*(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")))
        vision += parts("self_attn.out_proj", "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")
        names = [*parts("embeddings.patch_embedding"), "embeddings.position_embedding.weight"]
        names += [f"encoder.layers.{i}.{name}" for i in range(vision_layers) for name in vision]
        names += parts("post_layernorm")
        names = [f"model.vision_model.{name}" for name in names]
        names.append("model.connector.modality_projection.proj.weight")
        names += [f"model.text_model.layers.{i}.{n}" for i in range(text_layers) for n in TEXT]
        names += ["model.text_model.embed_tokens.weight", "model.text_model.norm.weight"]
        return {name: name for name in [*names, "lm_head.weight"]}
    vision = parts("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    names = ["patch_embed.proj.weight", *parts("merger.ln_q", "merger.mlp.0", "merger.mlp.2")]
    names += [f"blocks.{i}.{name}" for i in range(vision_layers) for name in vision]
    layer = [*TEXT, *(f"self_attn.{name}.bias" for name in PROJECTIONS[:3])]
    text = [f"layers.{i}.{name}" for i in range(text_layers) for name in layer]
    text += ["embed_tokens.weight", "norm.weight"]
    return {f"visual.{name}": f"model.visual.{name}" for name in names} | {
        f"model.{name}": f"model.language_model.{name}" for name in text
    }


def build(family, text, vision):
    """A model of these widths on the device that is set."""
    if family == "smolvlm":
        text = {"model_type": "llama", **text}
        settings = {"scale_factor": 3, "tie_word_embeddings": False}
        config = Idefics3Config(text_config=text, vision_config=vision, **settings)
    else:
        sections = {"type": "mrope", "mrope_section": [16, 24, 24]}
        text = {**text, "rope_theta": 1e6, "rope_scaling": sections, "tie_word_embeddings": True}
        config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    return AutoModelForImageTextToText.from_config(config)


@pytest.fixture(scope="module", params=sorted(POLICIES))
def full(request):
    """Family and model at its full size, on the meta device."""
    with torch.device("meta"):
        return request.param, build(request.param, *WIDTHS[request.param])


def test_every_published_tensor_is_one_parameter_and_every_parameter_is_published(full):
    family, model = full
    expected, parameters = published(family, *LAYERS[family][1]), dict(model.named_parameters())
    renamings = get_model_conversion_mapping(model)
    state = model.state_dict()
    args = renamings, [], model.base_model_prefix, state
    mapped = {name: rename_source_key(name, *args)[0] for name in expected}
    assert mapped == expected
    assert sorted(mapped.values()) == sorted(parameters)
    tied = "lm_head.weight"  # Qwen2-VL-2B has none of its own; a file that has one finds it
    assert rename_source_key(tied, *args)[0] == tied
    assert tied in state
    assert sum(p.numel() for p in parameters.values()) == PARAMETERS[family]


def test_lora_is_on_the_language_models_projections_alone(full):
    family, model = full
    with torch.device("meta"):
        adapted = get_peft_model(model, LoraConfig(target_modules=FAMILIES[family].lora, r=32))
    lora = {name: p for name, p in adapted.named_parameters() if "lora_" in name}
    count, size = LORA[family]
    assert len(lora) == count
    assert sum(p.numel() for p in lora.values()) == pytest.approx(size, rel=0.002)
    assert not [name for name in lora if re.search("vis|connector|merger|lm_head", name)]


@pytest.mark.parametrize("family", sorted(POLICIES))
def test_a_file_with_the_published_names_loads_completely(family, tmp_path):
    text, vision = (dict(widths) for widths in TINY[family])
    text |= {"num_hidden_layers": 2, "vocab_size": 64}
    vision |= {LAYERS[family][0]: 2}
    model = build(family, text, vision)
    model.config.save_pretrained(tmp_path)
    weights = dict(model.named_parameters())
    tensors = {n: weights[p].detach().clone() for n, p in published(family, 2, 2).items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(p, weights[name]) for name, p in loaded.named_parameters())
