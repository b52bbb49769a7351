"""Architectures of the embedded policies: Idefics3 and Qwen2-VL, small, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
from vizer_rl.data.scenes import SIDE

PATCH, GRID, WIDTH = 12, 8, 128
CONTENT = [{"type": "image"}, {"type": "text", "text": tokens.PROMPT}]
MESSAGES = [{"role": "user", "content": CONTENT}]


@dataclass
class PolicyParts:
    """A family's model with its stages as callables for pre-training, on images of SIDE pixels.

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


def smolvlm() -> PolicyParts:
    """SmolVLM's architecture (Idefics3: SigLIP tower, pixel shuffle, Llama), 1.7 M parameters."""
    special = [tokens.PAD, "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>"]
    special += ["<image>", "<global-img>"]
    special += [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens.tokenizer(special),
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token=tokens.PAD,
        additional_special_tokens=special,
        padding_side="left",
    )
    tokens.check(tokenizer)
    return idefics3(
        tokenizer, tokens.SMOLVLM_TEMPLATE, lambda: _text_config(tokenizer, model_type="llama")
    )


def idefics3(
    tokenizer: PreTrainedTokenizerFast, template: str, text_config: Callable[[], dict[str, Any]]
) -> PolicyParts:
    """SmolVLM's architecture with this language model, random weights, on scenes of 16 tokens.

    text_config: called once the processor has given the tokenizer the tokens that it lacks.
    """
    processor = Idefics3Processor(
        Idefics3ImageProcessor(
            do_image_splitting=False,
            size={"longest_edge": SIDE},
            max_image_size={"longest_edge": SIDE},
        ),
        tokenizer,
        image_seq_len=16,
        chat_template=template,
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
        text_config=text_config(),
    )
    model = Idefics3ForConditionalGeneration(config)
    inner = model.model

    def tower(pixels: torch.Tensor) -> torch.Tensor:
        return inner.vision_model((pixels - 0.5) / 0.5).last_hidden_state

    def decoder(embeds: torch.Tensor) -> torch.Tensor:
        return inner.text_model(inputs_embeds=embeds).last_hidden_state

    return PolicyParts(model, processor, inner.vision_model, tower, inner.connector, decoder)


def _text_config(tokenizer: PreTrainedTokenizerFast, **extra: Any) -> dict[str, Any]:
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
        **extra,
    )


def _qwen2vl_parts() -> tuple[Qwen2VLProcessor, Qwen2VLConfig]:
    special = [tokens.PAD, "<|im_start|>", "<|im_end|>", "<|object_ref_start|>"]
    special += ["<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>"]
    special += ["<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"]
    special += ["<|image_pad|>", "<|video_pad|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens.tokenizer(special),
        eos_token="<|im_end|>",
        pad_token=tokens.PAD,
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
        text_config=_text_config(
            tokenizer,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
        ),
    )
    return processor, config


def qwen2vl() -> PolicyParts:
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

    ids = prompt_inputs(processor)["input_ids"]
    padded = torch.cat([ids, torch.zeros(1, 32, dtype=ids.dtype)], 1)
    positions, _ = inner.get_rope_index(
        padded, (padded == config.image_token_id).int(), torch.tensor([[1, GRID, GRID]])
    )

    def decoder(embeds: torch.Tensor) -> torch.Tensor:
        position_ids = positions[:, :, : embeds.shape[1]].expand(-1, len(embeds), -1)
        return inner.language_model(
            inputs_embeds=embeds, position_ids=position_ids
        ).last_hidden_state

    return PolicyParts(model, processor, visual, tower, connector, decoder)


ARCHITECTURES = {"smolvlm": smolvlm, "qwen2vl": qwen2vl}


def prompt_inputs(processor: ProcessorMixin) -> dict:
    """The processor's tensors of the prompt with a blank image."""
    text = processor.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    image = Image.new("RGB", (SIDE, SIDE))
    return processor(images=[[image]], text=[text], return_tensors="pt")
