"""Builds the embedded policies: Idefics3 and Qwen2-VL captioners that see well and say little.

Two stages, as real ones: the vision tower learns to see (here from dense labels, where SigLIP or
DFN learn from billions of pairs), then connector and language model learn to caption like the web
(`web.py`) on the frozen tower's features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from experiments.embedded import tokens
from experiments.embedded.pretrain import (
    DENSE,
    LABELS,
    Pool,
    dense_accuracy,
    dense_labels,
    dense_loss,
    fit,
    to_pixels,
)
from experiments.embedded.web import web_caption
from vizer_rl.data.scenes import SIDE, Scene

PATCH, GRID, WIDTH = 12, 8, 128
TOWER_BATCH, CAPTION_BATCH = 32, 64  # small enough to stay in a CPU's cache
MESSAGES = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": tokens.PROMPT}],
    }
]


@dataclass
class Raw:
    """A family's model taken apart for pre-training, on images of SIDE pixels.

    tower: pixels (N, 3, SIDE, SIDE) in [0, 1] -> patch features (N, 64, WIDTH), row-major;
    connector: patch features -> (N, 16, hidden) in the language model's token order;
    decoder: embeds (N, T, hidden) -> last hidden states.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    vision: nn.Module
    tower: Callable[[torch.Tensor], torch.Tensor]
    connector: Callable[[torch.Tensor], torch.Tensor]
    decoder: Callable[[torch.Tensor], torch.Tensor]


def smolvlm() -> Raw:
    """SmolVLM's architecture (Idefics3: SigLIP tower, pixel shuffle, Llama), 1.7 M parameters."""
    special = ["<|im_end|>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>"]
    special += ["<image>", "<global-img>"]
    special += [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens.tokenizer(special),
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        additional_special_tokens=special,
        padding_side="left",
    )
    tokens.check(tokenizer)
    processor = Idefics3Processor(
        Idefics3ImageProcessor(
            do_image_splitting=False,
            size={"longest_edge": SIDE},
            max_image_size={"longest_edge": SIDE},
        ),
        tokenizer,
        image_seq_len=16,
        chat_template=tokens.SMOLVLM_TEMPLATE,
    )
    config = Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=True,
        vision_config=dict(
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=PATCH,
        ),
        text_config=_text(tokenizer, model_type="llama"),
    )
    model = Idefics3ForConditionalGeneration(config)
    inner = model.model

    def tower(pixels: torch.Tensor) -> torch.Tensor:
        return inner.vision_model((pixels - 0.5) / 0.5).last_hidden_state

    def decoder(embeds: torch.Tensor) -> torch.Tensor:
        return inner.text_model(inputs_embeds=embeds).last_hidden_state

    return Raw(model, processor, inner.vision_model, tower, inner.connector, decoder)


def _text(tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    return dict(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )


def _qwen2vl_parts() -> tuple[Qwen2VLProcessor, Qwen2VLConfig]:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>"]
    special += ["<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>"]
    special += ["<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"]
    special += ["<|image_pad|>", "<|video_pad|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens.tokenizer(special),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special,
        padding_side="left",
    )
    tokens.check(tokenizer)
    pixels = {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(patch_size=PATCH, merge_size=2, size=pixels),
        tokenizer,
        Qwen2VLVideoProcessor(patch_size=PATCH, merge_size=2, size=pixels),
        chat_template=tokens.QWEN_TEMPLATE,
    )

    def token(name: str) -> int:
        return tokenizer.convert_tokens_to_ids(name)

    config = Qwen2VLConfig(
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
        vision_config=dict(
            depth=4, embed_dim=WIDTH, hidden_size=WIDTH, mlp_ratio=3, num_heads=4, patch_size=PATCH
        ),
        text_config=_text(
            tokenizer,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
        ),
    )
    return processor, config


def qwen2vl() -> Raw:
    """Qwen2-VL's architecture (ViT with 2-D rope, merger, Qwen2 with M-RoPE), 2 M parameters."""
    processor, config = _qwen2vl_parts()
    model = Qwen2VLForConditionalGeneration(config)
    inner, visual = model.model, model.model.visual
    mean = torch.tensor(processor.image_processor.image_mean)[:, None, None]
    std = torch.tensor(processor.image_processor.image_std)[:, None, None]
    half = GRID // 2

    def tower(pixels: torch.Tensor) -> torch.Tensor:
        n = len(pixels)
        x = ((pixels - mean) / std).view(n, 3, half, 2, PATCH, half, 2, PATCH)
        x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1)
        grid = torch.tensor([[1, GRID, GRID]]).expand(n, -1)
        out = visual(x.reshape(n * GRID * GRID, -1), grid).last_hidden_state
        return out.view(n, half, half, 2, 2, -1).transpose(2, 3).reshape(n, GRID * GRID, -1)

    def connector(features: torch.Tensor) -> torch.Tensor:
        n = len(features)
        x = features.view(n, half, 2, half, 2, -1).transpose(2, 3).reshape(n * GRID * GRID, -1)
        return visual.merger(x).view(n, half * half, -1)

    ids = _prompt(processor)["input_ids"]
    longest = torch.cat([ids, torch.zeros(1, 32, dtype=ids.dtype)], 1)
    positions, _ = inner.get_rope_index(
        longest, (longest == config.image_token_id).int(), torch.tensor([[1, GRID, GRID]])
    )

    def decoder(embeds: torch.Tensor) -> torch.Tensor:
        at = positions[:, :, : embeds.shape[1]].expand(-1, len(embeds), -1)
        return inner.language_model(inputs_embeds=embeds, position_ids=at).last_hidden_state

    return Raw(model, processor, visual, tower, connector, decoder)


RAW = {"smolvlm": smolvlm, "qwen2vl": qwen2vl}


def _prompt(processor: ProcessorMixin, image: Image.Image | None = None) -> dict:
    text = processor.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    image = image or Image.new("RGB", (SIDE, SIDE))
    return processor(images=[[image]], text=[text], return_tensors="pt")


def build(
    family: str, data: Pool, work: Path, seed: int, steps: tuple[int, int]
) -> tuple[Raw, float]:
    """Pre-train one policy: `steps` of the tower and of the language model; and the seconds."""
    torch.manual_seed(seed)
    raw = RAW[family]()
    n = len(data.scenes) - 512
    labels = dense_labels(data.scenes, GRID).view(-1, GRID * GRID, LABELS)
    see = nn.ModuleDict({"vision": raw.vision, "dense_head": nn.Linear(WIDTH, DENSE)})
    rng = np.random.default_rng(seed)

    def tower_loss(step: int) -> torch.Tensor:
        rows = rng.integers(n, size=TOWER_BATCH)
        features = raw.tower(to_pixels(data.pixels[rows]))
        return dense_loss(see["dense_head"](features), labels[rows])

    seconds = fit(f"{family}-tower", see, tower_loss, steps[0], 2e-3, work)
    with torch.no_grad():
        parts = [data.pixels[i : i + 500] for i in range(0, len(data.scenes), 500)]
        cached = torch.cat([raw.tower(to_pixels(part)).half() for part in parts])
        told = dense_accuracy(see["dense_head"](cached[n:].float()), labels[n:])
        print(f"{family} tower: shape, colour, size, fill, part of object cells {told}", flush=True)
    raw.vision.requires_grad_(False)
    if family == "qwen2vl":
        raw.vision.merger.requires_grad_(True)
    loss = language_loss(raw, cached, data.scenes, rng, n)
    seconds += fit(f"{family}-language", _Trainable(raw.model), loss, steps[1], 2e-3, work)
    return raw, seconds


class _Trainable(nn.Module):
    """Only the parameters that still learn, under their own names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "-"), parameter)


def language_loss(
    raw: Raw, cached: torch.Tensor, scenes: list[Scene], rng: np.random.Generator, n: int
) -> Callable[[int], torch.Tensor]:
    """Cross-entropy of web captions given frozen patch features (N, 64, WIDTH)."""
    prompt = _prompt(raw.processor)["input_ids"][0]
    tokenizer, embed = raw.processor.tokenizer, raw.model.get_input_embeddings()
    image = prompt == raw.model.config.image_token_id
    lead = "" if prompt[-1] == tokenizer.convert_tokens_to_ids("Ċ") else " "

    def loss(step: int) -> torch.Tensor:
        rows = rng.integers(n, size=CAPTION_BATCH)
        texts = [lead + web_caption(scenes[i], rng) + tokenizer.eos_token for i in rows]
        ids = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        both = torch.cat([prompt.expand(len(rows), -1), ids["input_ids"]], 1)
        embeds = embed(both)
        spot = torch.zeros(both.shape[1], dtype=torch.bool)
        spot[: len(prompt)] = image
        embeds[:, spot] = raw.connector(cached[rows].float())
        hidden = raw.decoder(embeds)[:, len(prompt) - 1 : -1]
        labels = ids["input_ids"].masked_fill(ids["attention_mask"] == 0, -100)
        return nn.functional.cross_entropy(
            raw.model.lm_head(hidden).flatten(0, 1), labels.flatten()
        )

    return loss
