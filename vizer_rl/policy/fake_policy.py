"""Memory of a policy without its weights: its passes on fake tensors, their live bytes counted.

A model of any size is built in a second. Passes run at two depths, for bytes grow by the same with
each layer of the language model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForImageTextToText

from .families import family_of
from .live_bytes import LiveBytes, fake_tensors
from .lora import merged
from .shared_prefix.attention import PROMPT, attention_mask, model_inputs
from .shared_prefix.kept import result_to_keep
from .shared_prefix.kv_cache import static_kv_cache
from .shared_prefix.packing import Layout, log_probs
from .trained_parts import COPIED, FROZEN, keep_in_float32, part_of

NF4 = (4 + (8 + 32 / 256) / 64) / 8  # bytes of a weight: 4 bits, its block of 64 has a constant
DEPTHS = 2, 4  # layers of the language model at which passes run


class FakePolicy:
    """A policy with its adapter, by its config: bytes of its tensors, and of passes through it.

    weights, adapter: bytes, and of those copied: what learns whole, frozen_start: what that began
    as; kept: what the vision cache keeps of an image; tower: parameters of all that is not the
    language model; autocast: whether passes of the loss run under bfloat16's.
    """

    def __init__(
        self,
        config: Any,
        lora: LoraConfig,
        dtype: torch.dtype,
        autocast: bool = False,
        four_bits: bool = False,
    ) -> None:
        """four_bits: of the weights of the language model that LoRA adapts."""
        self.config, self.dtype, self.autocast = config, dtype, autocast
        self.text: Any = config.get_text_config()
        self._peaks: dict[tuple[Any, ...], int] = {}
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        whole = _meta_model(config, lora, dtype)
        named = dict(whole.named_parameters())
        adapter = [p for name, p in named.items() if "lora_" in name or COPIED in name]
        self.adapter, self.adapter_tensors = sum(p.nbytes for p in adapter), len(adapter)
        self.weights = sum(p.nbytes for p in named.values()) - self.adapter
        self.copied = sum(p.nbytes for name, p in named.items() if COPIED in name)
        self.frozen_start = sum(p.nbytes for name, p in named.items() if FROZEN in name)
        base = whole.get_base_model()
        family = family_of(config.model_type)
        self.kept = result_to_keep(base, family)
        for name, p in named.items() if four_bits else ():
            if name.endswith(".base_layer.weight") and part_of(name, family) == "language":
                self.weights -= p.nbytes - int(NF4 * p.numel())
        outside = {id(p) for m in (base.get_decoder(), base.lm_head) for p in m.parameters()}
        self.tower = sum(p.numel() for p in base.parameters() if id(p) not in outside)
        self._models = [
            fake_tensors(_meta_model(_shallow(config, n), lora, dtype), self._mode) for n in DEPTHS
        ]

    def kv_cache(self, rows: int, columns: int) -> int:
        """Bytes of keys and values of so many columns in each of so many rows."""
        text = self.text
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        per_column = 2 * text.num_hidden_layers * text.num_key_value_heads * head
        return rows * columns * per_column * self.dtype.itemsize

    def forward_backward(self, packed: Layout, checkpointing: bool) -> int:
        """Peak bytes of log-probs of a packed batch and of their gradient, its own included."""

        def peak(model: Any) -> int:
            base, ids = model.get_base_model(), packed.target_idx
            model.train()
            if checkpointing:
                base.gradient_checkpointing_enable(
                    gradient_checkpointing_kwargs={"use_reentrant": False}
                )
            else:
                base.gradient_checkpointing_disable()
            with self._counted(model) as live, torch.autocast("cpu", torch.bfloat16, self.autocast):
                mask = attention_mask(_like(packed.group), _like(packed.branch))
                inputs = model_inputs(_like(packed.positions), mask)
                states = base.get_decoder()(
                    inputs_embeds=self._embeddings(*packed.ids.shape).requires_grad_(),
                    use_cache=False,
                    **inputs,
                ).last_hidden_state
                hidden, head = states.flatten(0, 1)[_like(ids)], base.get_output_embeddings()
                logps, entropies = log_probs(hidden, head, _like(ids), 1.0)
                (logps.sum() + 0 * entropies.sum()).backward()
            model.zero_grad()
            return live.peak

        key = ("pass", *packed.ids.shape, len(packed.target_idx), checkpointing)
        return self._whole_depth(peak, key)

    def features(self, tokens: int, pixels: int) -> int:
        """Bytes of what is kept of an image of so many tokens and so many numbers."""
        vision = self.config.vision_config
        tower = int(getattr(vision, "embed_dim", None) or vision.hidden_size)
        read = tokens * int(self.text.hidden_size) * self.dtype.itemsize
        states = self.patches(pixels) * tower * self.dtype.itemsize
        return {"features": read, "states": states, "pixels": 4 * pixels}[self.kept]

    def patches(self, pixels: int) -> int:
        """Tokens of the vision tower of an image of so many numbers."""
        vision = self.config.vision_config
        size = vision.patch_size  # InternVL's is (height, width)
        area = size**2 if isinstance(size, int) else math.prod(size)
        return pixels // (3 * area * getattr(vision, "temporal_patch_size", 1))

    def encoding(self, pixels: int, images: int) -> int:
        """Peak bytes of `images` images of so many numbers in the vision tower together.

        A block holds eight tensors as wide as the tower and two as wide as its MLP; pixels are held
        as float32 on the way, three times.
        """
        vision = self.config.vision_config
        width = getattr(vision, "embed_dim", None) or vision.hidden_size
        inner = getattr(vision, "intermediate_size", None) or width * vision.mlp_ratio
        states = self.patches(pixels) * int(8 * width + 2 * inner) * self.dtype.itemsize
        return images * (states + 3 * 4 * pixels)

    def tower_backward(self, pixels: int, images: int) -> int:
        """Bytes that the vision tower keeps for its gradient: those of `encoding` in each block."""
        vision = self.config.vision_config
        depth = getattr(vision, "depth", None) or vision.num_hidden_layers
        return int(depth) * self.encoding(pixels, images)

    def logits(self, captions: int) -> int:
        """Bytes of the float32 logits of a sampling step and of what is drawn from them."""
        return captions * self.text.vocab_size * (self.dtype.itemsize + 5 * 4)

    def sampling(self, rows: int, prompt: int, slots: int, max_new_tokens: int) -> int:
        """Peak bytes of decoding `slots` captions behind each of `rows` prompts (tokens)."""
        columns = prompt + max_new_tokens * slots

        def peak(model: Any) -> int:
            text, body = model.get_base_model().get_decoder(), prompt - 1
            model.eval()
            with self._counted(model) as live, torch.no_grad(), merged(model):
                cache = static_kv_cache(SimpleNamespace(config=text.config), columns)
                branch = torch.full((rows, body), PROMPT)
                positions = torch.zeros(self.kinds, rows, body, dtype=torch.long)
                inputs = model_inputs(positions, attention_mask(branch, branch))
                text(
                    inputs_embeds=self._embeddings(rows, body),
                    past_key_values=cache,
                    use_cache=True,
                    **inputs,
                )
                self._last_step(text, cache, rows, slots, columns)
            return live.peak

        return self._whole_depth(peak, ("sampling", rows, prompt, slots, max_new_tokens))

    def _last_step(self, text: Any, cache: Any, rows: int, slots: int, columns: int) -> None:
        """The step of decoding that reads all columns."""
        heads, width = self.text.num_key_value_heads, cache.layers[0].buffers[0].shape[3]
        between = columns - slots - cache.layers[0].filled
        for index in range(len(cache.layers)):
            new = torch.empty(1, heads, 1, width, dtype=self.dtype).expand(rows, -1, between, -1)
            cache.update(new, new, index)
        mask = torch.zeros(rows, 1, slots, columns, dtype=torch.bool)
        positions = torch.zeros(self.kinds, rows, slots, dtype=torch.long)
        embeddings = self._embeddings(rows, slots)
        inputs = model_inputs(positions, mask)
        text(inputs_embeds=embeddings, past_key_values=cache, use_cache=True, **inputs)

    def reading(self, tokens: int) -> int:
        """Peak bytes of a pass without gradients over so many tokens, as rewards read captions."""

        def peak(model: Any) -> int:
            model.eval()
            with self._counted(model) as live, torch.no_grad():
                embeddings = self._embeddings(1, tokens)
                model.get_base_model().get_decoder()(inputs_embeds=embeddings, use_cache=False)
            return live.peak

        return self._whole_depth(peak, ("reading", tokens))

    @property
    def kinds(self) -> int:
        """Kinds of positions: rotary ones in time, height and width, or one."""
        return 3 if "mrope_section" in (getattr(self.text, "rope_parameters", None) or {}) else 1

    def _embeddings(self, rows: int, length: int) -> Tensor:
        return torch.empty(rows, length, self.text.hidden_size, dtype=self.dtype)

    @contextmanager
    def _counted(self, model: Any) -> Iterator[LiveBytes]:
        with self._mode, LiveBytes(model) as live:
            yield live

    def _whole_depth(self, peak: Callable[[Any], int], key: tuple[Any, ...]) -> int:
        """Of all layers; counted anew where nothing was under this key."""
        if key not in self._peaks:
            low, high = map(peak, self._models)
            per_layer = (high - low) / (DEPTHS[1] - DEPTHS[0])
            layers = self.text.num_hidden_layers - DEPTHS[0]
            self._peaks[key] = round(low + per_layer * layers)
        return self._peaks[key]


def _like(x: Tensor) -> Tensor:
    """A fake tensor of the same shape and type."""
    return torch.empty(x.shape, dtype=x.dtype)


def _shallow(config: Any, layers: int) -> Any:
    config = deepcopy(config)
    text = config.get_text_config()
    text.update({"num_hidden_layers": layers})
    if kinds := getattr(text, "layer_types", None):
        text.update({"layer_types": [kinds[n % len(kinds)] for n in range(layers)]})
    return config


def _meta_model(config: Any, lora: LoraConfig, dtype: torch.dtype) -> Any:
    """The policy with its adapter on the meta device, all but the adapter frozen."""
    with torch.device("meta"):
        model = get_peft_model(bare_model(config, dtype), lora)
        keep_in_float32(model)
    return model


def bare_model(config: Any, dtype: torch.dtype) -> Any:
    """The frozen policy on the meta device."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    return model.requires_grad_(False)
