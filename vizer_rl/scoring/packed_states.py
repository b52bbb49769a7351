"""Last hidden states of captions packed behind their prompts, each prefix of them computed once.

What `hidden_states` gives one row per caption, up to rounding, for a part of its price. Prompts
keep their keys and values, so that a blank image, which comes again, costs its captions alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from PIL.Image import Image
from torch import Tensor

from rewards.lib.images import image_hash

from ..policy.batches import batches
from ..policy.families import Family
from ..policy.shared_prefix.attention import model_inputs
from ..policy.shared_prefix.kv_cache import StaticKVCache, static_kv_cache
from ..policy.shared_prefix.packing import Prompt
from ..policy.shared_prefix.token_tree import TokenTree, token_tree
from ..policy.shared_prefix.vision_cache import VisionCache
from ..policy.vision import image_inputs

MEMORY = 2**28  # bytes of prompts with their images' features that are kept; of keys and values
NODES = 2048  # of one pass
TOGETHER = 16  # images of one pass


class _Kept(NamedTuple):
    """A prompt, without its image's features, and per layer keys and values (1, heads, P - 1, d)
    of all its tokens but the last."""

    prompt: Prompt
    layers: list[list[Tensor]]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(x.nbytes for pair in self.layers for x in pair)


class PackedStates:
    """Packed passes of a model whose weights stay as they are: in eval mode, without adapter and
    gradient."""

    def __init__(self, model: Any, processor: Any, family: Family) -> None:
        self.model = model
        self.prompts = VisionCache(model, processor, family, memory=MEMORY)
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._bytes = 0

    def __call__(
        self,
        chat: str,
        completions: Sequence[list[int]],
        images: Sequence[Image],
        prompt_of: Callable[[Image], Prompt | None],
    ) -> Iterator[Tensor]:
        """Per caption of T token ids (T + 1, D): before each token, and behind the last one.

        prompt_of: what there is of an image with its prompt already.
        """
        pictures = [images[row] for row in range(len(completions))]
        rows: dict[int, list[int]] = {}  # of each image, neighbours or not
        for row, image in enumerate(pictures):
            rows.setdefault(id(image), []).append(row)
        states = dict[int, Tensor]()

        def nodes(group: list[int]) -> int:
            return sum(len(completions[row]) + 1 for row in group)

        for chunk in batches(rows.values(), nodes, NODES, TOGETHER):
            order = [row for group in chunk for row in group]
            index = [k for k, group in enumerate(chunk) for _ in group]
            chosen = [pictures[group[0]] for group in chunk]
            captions = [completions[row] for row in order]
            hidden = self._pass(chat, chosen, index, captions, prompt_of)
            states |= dict(zip(order, hidden, strict=True))
        return (states[row] for row in range(len(completions)))

    def _pass(
        self,
        chat: str,
        images: list[Image],
        index: list[int],
        captions: list[list[int]],
        prompt_of: Callable[[Image], Prompt | None],
    ) -> Iterator[Tensor]:
        """States before each token of the captions, and behind; index: of the image of each."""
        keys = [(image_hash(image), chat) for image in images]
        kept = [self._recall(key) for key in keys]
        missing = [image for image, entry in zip(images, kept, strict=True) if entry is None]
        new = iter(self._prompts(chat, missing, prompt_of))
        prompts = [next(new) if entry is None else entry.prompt for entry in kept]
        tree = token_tree(prompts, [entry is not None for entry in kept], index, captions)
        cache = static_kv_cache(self.model, tree.mask.shape[-1])
        for entry in kept:
            for layer, (k, v) in zip(cache.layers, entry.layers if entry else (), strict=False):
                layer.update(k, v)
        unread = [prompt for prompt, entry in zip(prompts, kept, strict=True) if entry is None]
        states = self._forward(tree, cache, unread)
        for key, body, prompt, entry in zip(keys, tree.bodies, prompts, kept, strict=True):
            if entry is None:
                self._keep(key, _Kept(prompt, cache.columns(body)))
        return (states[path] for path in tree.paths)

    def _forward(self, tree: TokenTree, cache: StaticKVCache, unread: list[Prompt]) -> Tensor:
        """(N, D) states of the nodes; unread: the prompts among them."""
        device = self.model.device
        states: Tensor = self.model.model(
            input_ids=tree.ids.to(device),
            **model_inputs(tree.positions.to(device), tree.mask.to(device)),
            **(image_inputs(self.model, unread) if unread else {}),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return states[0]

    def _prompts(
        self, chat: str, images: list[Image], prompt_of: Callable[[Image], Prompt | None]
    ) -> list[Prompt]:
        given = [prompt_of(image) for image in images]
        missing = [image for image, prompt in zip(images, given, strict=True) if prompt is None]
        rest = iter(self.prompts.prompts(missing, [chat] * len(missing)) if missing else ())
        return [next(rest) if prompt is None else prompt for prompt in given]

    def _recall(self, key: tuple[str, str]) -> _Kept | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def _keep(self, key: tuple[str, str], entry: _Kept) -> None:
        if key in self._kept:  # two equal images of one pass
            return
        self._kept[key] = entry._replace(prompt=replace(entry.prompt, features=None, vision={}))
        self._bytes += entry.size
        while self._bytes > MEMORY:
            self._bytes -= self._kept.popitem(last=False)[1].size
