"""Memory of a policy without its weights: its passes on fake tensors, their live bytes counted.

A model of any size is built in a second. Passes run at two depths, for bytes grow by the same with
each layer of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForImageTextToText

from .live_bytes import LiveBytes, fake_tensors
from .lora import merged
from .shared_prefix.attention import PROMPT, attention_mask, model_inputs
from .shared_prefix.kv_cache import static_kv_cache
from .shared_prefix.packing import Layout, log_probs

DEPTHS = 2, 4  # layers of the language model at which passes run


class FakePolicy:
    """A policy with its adapter, by its config: bytes of its tensors, and of passes through it.

    weights, adapter: bytes; tower: parameters of all that is not the language model; autocast:
    whether passes of the loss run under bfloat16's.
    """

    def __init__(
        self, config: Any, lora: LoraConfig, dtype: torch.dtype, autocast: bool = False
    ) -> None:
        self.config, self.dtype, self.autocast = config, dtype, autocast
        self.text: Any = config.get_text_config()
        self._peaks: dict[tuple[Any, ...], int] = {}
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        whole = _meta_model(config, lora, dtype)
        named = dict(whole.named_parameters())
        self.weights = sum(p.nbytes for name, p in named.items() if "lora_" not in name)
        adapter = [p for name, p in named.items() if "lora_" in name]
        self.adapter, self.adapter_tensors = sum(p.nbytes for p in adapter), len(adapter)
        base = whole.get_base_model()
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

    def features(self, tokens: int) -> int:
        """Bytes of so many image tokens as the language model reads them."""
        return tokens * int(self.text.hidden_size) * self.dtype.itemsize

    def patches(self, pixels: int) -> int:
        """Tokens of the vision tower of an image of so many numbers."""
        vision = self.config.vision_config
        return pixels // (3 * vision.patch_size**2 * getattr(vision, "temporal_patch_size", 1))

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
                cache = static_kv_cache(_Depth(text), columns)
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


class _Depth:
    """What `static_kv_cache` reads of a model: the depth of its language model."""

    def __init__(self, text: Any) -> None:
        self.config = text.config


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
        model = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
        return get_peft_model(model.requires_grad_(False), lora)
