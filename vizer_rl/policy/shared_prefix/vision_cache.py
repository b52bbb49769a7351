"""Vision cache: what the language model reads of an image, computed once while the tower is frozen.

An image goes through processor, vision tower and connector once; sampling, old, reference and
policy passes, evaluation and later epochs take the result from memory, or from disk. With a
trainable tower the processor's output is kept instead, and every pass encodes the image anew.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL.Image import Image
from torch import Tensor

from rewards.lib import disk_cache
from rewards.lib.images import image_hash

from ..batches import batches
from ..families import FAMILIES, Family
from ..vision import ImageInputs, encode_images, pixel_count, process_images, raw_size, tower_inputs
from ..weights_hash import weights_hash
from .packing import Prompt, unwrapped

MEMORY = 4 * 2**30  # bytes of host memory: 1,000 images of 1,024 tokens, width 2,048, in bfloat16
ENCODE_BATCH = 8  # images that go through the tower together, if they are small:
ENCODE_PIXELS = 20_000_000  # numbers of all that do: 8 images of Qwen2-VL of 512 tokens
PROCESS_BYTES = 2**28  # of float32 pixels at their own size, which the processor holds at a time

Entry = dict[str, Tensor]  # "ids", "positions", and "features" or the tower's inputs


class VisionCache:
    """Prompts with their images' features, each image once: in memory (LRU) and, given `folder`,
    on disk.

    The key is the image's pixels, its prompt, the processor's settings and the weights of tower
    and connector: no stale entry is found, as long as weights change by ways that autograd counts
    (not through `.data`).
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        family: Family,
        *,
        memory: int = MEMORY,
        folder: Path | None = None,
        cuda: bool = False,
    ) -> None:
        """`memory`: bytes; `cuda`: sampling as a CUDA graph, attention by the faster kernel."""
        self.model, self.processor, self.family = model, processor, family
        self.memory, self.folder, self.cuda = memory, folder, cuda
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._bytes = self._requests = self._hits = 0
        self._weights: tuple[Any, str] = ((), "")

    def prompts(
        self,
        images: Sequence[Image],
        texts: Sequence[str],
        inputs: Sequence[ImageInputs | None] = (),
        *,
        sharded: bool = False,
    ) -> list[Prompt]:
        """Prompts (texts in chat form) with features, on the model's device; as for `entries`."""
        return self.on_device(self.entries(images, texts, inputs, sharded=sharded))

    def on_device(self, entries: Sequence[Entry]) -> list[Prompt]:
        """Prompts of entries, their features on the model's device."""
        return [_prompt(entry, self._base.device) for entry in entries]

    def entries(
        self,
        images: Sequence[Image],
        texts: Sequence[str],
        inputs: Sequence[ImageInputs | None] = (),
        *,
        sharded: bool = False,
    ) -> list[Entry]:
        """Images with their texts (in chat form) as they are kept, in host memory.

        inputs: what a worker has processed of them; sharded: weights are spread over devices, and
        all must go through the tower together, so that no features are kept.
        """
        frozen = not sharded and not any(p.requires_grad for p in self._parameters())
        settings = self._settings(frozen)
        keys = [self._key(settings, i, t) for i, t in zip(images, texts, strict=True)]
        entries = {key: entry for key in keys if (entry := self._get(key, frozen)) is not None}
        self._requests += len(keys)
        self._hits += sum(key in entries for key in keys)
        missing = {key: n for n, key in reversed(list(enumerate(keys))) if key not in entries}
        size = [raw_size(image) for image in images]
        for chunk in batches(missing, lambda k: size[missing[k]], PROCESS_BYTES, ENCODE_BATCH):
            rows = [missing[key] for key in chunk]
            new = [x for n in rows if inputs and (x := inputs[n]) is not None]
            if len(new) < len(rows):
                new = process_images(
                    self.processor, [images[n] for n in rows], [texts[n] for n in rows]
                )
            for key, entry in zip(chunk, self._encode(new, frozen), strict=True):
                entries[key] = entry
                self._put(key, entry)
                if self.folder is not None and frozen:
                    disk_cache.write(_path(self.folder, key), safetensors.torch.save(entry))
        return [entries[key] for key in keys]

    def hit_rate(self) -> float:
        """Share of prompts found in the cache since the last call."""
        requests, hits = self._requests, self._hits
        self._requests = self._hits = 0
        return hits / requests if requests else 0.0

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which the vision tower takes pixels."""
        return self._parameters()[0].dtype

    @property
    def _base(self) -> Any:
        return unwrapped(self.model)

    def _parameters(self) -> list[torch.nn.Parameter]:
        """Of tower and connector."""
        modules = [self._base.get_submodule(name) for name in self.family.vision_modules]
        return [p for module in modules for p in module.parameters()]

    def _settings(self, frozen: bool) -> str:
        """All that an entry depends on but image and prompt."""
        parameters = self._parameters() if frozen else []
        state = tuple((id(p), p.data_ptr(), p._version) for p in parameters)
        if self._weights[0] != state:  # all weights are hashed again only where one was touched
            named = ((str(index), p) for index, p in enumerate(parameters))
            self._weights = (state, weights_hash(named))
        processors = [self.processor.image_processor.to_dict(), self.processor.to_dict()]
        return f"{self._weights[1]}{json.dumps(processors, sort_keys=True, default=str)}{frozen}"

    @staticmethod
    def _key(settings: str, image: Image, text: str) -> str:
        key = f"{image_hash(image)} {text} {settings}".encode()
        return blake2b(key, digest_size=16).hexdigest()

    def _get(self, key: str, frozen: bool) -> Entry | None:
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        if self.folder is None or not frozen:
            return None
        content = disk_cache.read(_path(self.folder, key))
        if content is None:
            return None
        entry = safetensors.torch.load(content)
        self._put(key, entry)
        return entry

    def _put(self, key: str, entry: Entry) -> None:
        self._entries[key] = entry
        self._bytes += _size(entry)
        while self._bytes > self.memory and len(self._entries) > 1:
            self._bytes -= _size(self._entries.popitem(last=False)[1])

    @torch.no_grad()
    def _encode(self, inputs: Sequence[ImageInputs], frozen: bool) -> list[Entry]:
        """Entries: positions, and features in place of the tower's inputs where it is frozen."""
        positions = [self._positions(x) for x in inputs]
        if not frozen:
            return [{**x, "positions": p} for x, p in zip(inputs, positions, strict=True)]
        features: list[Tensor] = []
        for batch in batches(inputs, pixel_count, ENCODE_PIXELS, ENCODE_BATCH):
            encoded = encode_images(self._base, batch)
            features += [f.to("cpu", copy=True) for _, f in encoded]
        return [
            {"ids": x["ids"], "positions": p, "features": f}
            for x, p, f in zip(inputs, positions, features, strict=True)
        ]

    def _positions(self, inputs: ImageInputs) -> Tensor:
        """(K, P) rotary positions of the prompt."""
        ids = inputs["ids"]
        if not self.family.mrope:
            return torch.arange(len(ids))[None]
        kinds = (ids == self._base.config.image_token_id).int()
        return self._base.model.get_rope_index(
            ids[None], mm_token_type_ids=kinds[None], image_grid_thw=inputs["image_grid_thw"]
        )[0][:, 0]


def _prompt(entry: Entry, device: torch.device) -> Prompt:
    features = entry.get("features")
    features = None if features is None else features.to(device, non_blocking=True)
    return Prompt(entry["ids"], entry["positions"], features, tower_inputs(entry, device))


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key}.features"


def _size(entry: Entry) -> int:
    return sum(x.nbytes for x in entry.values())


def shared_prefix_obstacle(family: str, attention: str, args: Any = None) -> str:
    """Why a group's captions cannot share their prompt, or "": attention kernel, TRL's config."""
    if not FAMILIES[family].shared_prefix:
        return f"family {family} is not covered by the shared prefix"
    if attention != "sdpa":
        return f"policy.attn_implementation {attention} takes no mask of branches; sdpa does"
    if args and (args.use_transformers_continuous_batching or args.cache_implementation):
        return "train.use_transformers_continuous_batching and cache_implementation are TRL's"
    if args and {"num_beams", "num_return_sequences"} & set(args.generation_kwargs or ()):
        return "train.generation_kwargs asks for more than sampling"
    return ""


def build_vision_cache(
    model: Any,
    processor: Any,
    family: str,
    *,
    shared_prefix: str = "auto",
    cuda: str = "auto",
    vision_cache: str | None = None,
    args: Any = None,
    report: Callable[[str], object] = lambda sentence: None,
) -> VisionCache | None:
    """What lets a group share its prompt; None, the reason given to `report`, where it cannot.

    shared_prefix, cuda: "auto" or "off"; vision_cache: folder for features; args: TRL's config.
    """
    obstacle = "engine.shared_prefix is off"
    if shared_prefix != "off":
        attention = model.config.get_text_config()._attn_implementation
        obstacle = shared_prefix_obstacle(family, attention, args)
    if obstacle:
        report(f"one row per caption, as TRL does it: {obstacle}")
        return None
    graphs = cuda == "auto" and model.device.type == "cuda"
    path = Path(vision_cache).expanduser() if vision_cache else None
    return VisionCache(model, processor, FAMILIES[family], folder=path, cuda=graphs)
