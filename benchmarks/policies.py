"""Policies of the benchmarks: embedded ones, and random weights in the shapes of real ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, Idefics3Config, Qwen2VLConfig

from vizer_rl.policy import load

DTYPE = torch.bfloat16 if torch.cuda.is_available() else torch.float32


@dataclass(frozen=True)
class Shape:
    """Sizes of a policy: of the language model, then of the vision tower."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocab: int
    tower_width: int
    tower_layers: int
    tower_heads: int
    tower_inner: int


SMALL = Shape(320, 6, 5, 5, 864, 4096, 192, 4, 3, 576)  # 12 M parameters
SMOLVLM_256M = Shape(576, 30, 9, 3, 1536, 49280, 768, 12, 12, 3072)
SMOLVLM_500M = Shape(960, 32, 15, 5, 2560, 49280, 768, 12, 12, 3072)
SMOLVLM = Shape(2048, 24, 32, 32, 8192, 49280, 1152, 27, 16, 4304)  # SmolVLM-Base, 2.2 B
QWEN2VL = Shape(1536, 28, 12, 2, 8960, 151936, 1280, 32, 16, 5120)  # Qwen2-VL-2B


def embedded(family: str) -> tuple[Any, Any, int]:
    """The embedded policy, its processor and its images' side in pixels (16 tokens)."""
    return *load.load_policy(family, "embedded", dtype="float32"), 96


def shaped_smolvlm(
    shape: Shape, tile: int, patch: int, scale: int, tiles: int, dtype: torch.dtype = DTYPE
) -> tuple[Any, Any, int]:
    """Idefics3 of this shape on images of `tiles` × `tiles` tiles and the whole (1: one tile)."""
    _, processor, _ = embedded("smolvlm")
    images = processor.image_processor
    images.do_image_splitting = tiles > 1
    images.max_image_size, images.size = {"longest_edge": tile}, {"longest_edge": tile * tiles}
    processor.image_seq_len = (tile // patch // scale) ** 2
    token = processor.tokenizer.convert_tokens_to_ids
    config = Idefics3Config(
        image_token_id=token("<image>"),
        scale_factor=scale,
        tie_word_embeddings=False,
        vision_config=_tower(shape, image_size=tile, patch_size=patch),
        text_config=_text(shape, processor, model_type="llama"),
    )
    return _random_model(config, processor, dtype), processor, tile * tiles


def smolvlm_256m() -> tuple[Any, Any, int]:
    """SmolVLM-256M with random weights, on an image of one tile: 64 tokens."""
    return shaped_smolvlm(SMOLVLM_256M, 512, 16, 4, 1, torch.bfloat16)


def smolvlm_500m() -> tuple[Any, Any, int]:
    """The same of SmolVLM-500M."""
    return shaped_smolvlm(SMOLVLM_500M, 512, 16, 4, 1, torch.bfloat16)


def shaped_qwen2vl(
    shape: Shape, patch: int, side: int, dtype: torch.dtype = DTYPE
) -> tuple[Any, Any, int]:
    """Qwen2-VL of this shape on square images of side × side tokens."""
    _, processor, _ = embedded("qwen2vl")
    images, pixels = processor.image_processor, side * 2 * patch
    images.patch_size = patch
    images.size = {"shortest_edge": pixels**2, "longest_edge": pixels**2}
    token = processor.tokenizer.convert_tokens_to_ids
    half = shape.width // shape.heads // 2
    config = Qwen2VLConfig(
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
        text_config=_text(shape, processor, rope_parameters=_mrope(half)),
        vision_config={
            "depth": shape.tower_layers,
            "embed_dim": shape.tower_width,
            "hidden_size": shape.width,
            "num_heads": shape.tower_heads,
            "mlp_ratio": shape.tower_inner // shape.tower_width,
            "patch_size": patch,
            "spatial_merge_size": 2,
        },
    )
    return _random_model(config, processor, dtype), processor, pixels


def images(side: int, count: int, seed: int) -> list[Image.Image]:
    """Square images of noise, the same for the same seed."""
    rng = torch.Generator().manual_seed(seed)
    shape = (side, side, 3)
    noise = (torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8) for _ in range(count))
    return [Image.fromarray(pixels.numpy()) for pixels in noise]


def _mrope(half: int) -> dict[str, Any]:
    time = half // 4
    rest = (half - time) // 2
    section = [half - 2 * rest, rest, rest]
    return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section}


def _text(shape: Shape, processor: Any, **extra: Any) -> dict[str, Any]:
    tokenizer = processor.tokenizer
    return {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.inner,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 8192,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **extra,
    }


def _tower(shape: Shape, **extra: int) -> dict[str, Any]:
    return {
        "hidden_size": shape.tower_width,
        "num_hidden_layers": shape.tower_layers,
        "num_attention_heads": shape.tower_heads,
        "intermediate_size": shape.tower_inner,
        **extra,
    }


def _random_model(config: Any, processor: Any, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    with torch.device(load.device()):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    model.generation_config.eos_token_id = [processor.tokenizer.eos_token_id]
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model.requires_grad_(False).eval()
