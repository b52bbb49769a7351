"""Vision cache: what the language model reads of an image, computed once while the tower is frozen.

An image goes through processor, vision tower and connector once; sampling, old, reference and
policy passes, evaluation and later epochs take the result from memory, or from disk. Where the
connector learns, the tower's output is kept and every pass runs the connector on it; where the
tower learns, the processor's output is kept and every pass encodes the image anew.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
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
from ..families import Family
from ..vision import (
    ENCODE_PIXELS,
    STATES,
    ImageInputs,
    encode_images,
    pixel_count,
    process_images,
    raw_size,
    token_type_inputs,
)
from ..weights_hash import weights_hash
from .kept import Entry, Kept, prompt_of, result_to_keep, weights_behind
from .packing import Prompt, unwrapped

MEMORY = 4 * 2**30  # bytes of host memory: 1,000 images of 1,024 tokens, width 2,048, in bfloat16
ENCODE_BATCH = 8  # images that go through the tower together, if they are small
PROCESS_BYTES = 2**28  # of float32 pixels at their own size, which the processor holds at a time


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
        return [prompt_of(entry, self._base.device) for entry in entries]

    def entries(
        self,
        images: Sequence[Image],
        texts: Sequence[str],
        inputs: Sequence[ImageInputs | None] = (),
        *,
        sharded: bool = False,
    ) -> list[Entry]:
        """Images with their texts (in chat form) as they are kept, in host memory.

        inputs: what a worker has processed; sharded: weights are spread over devices, and all must
        go through the tower together, so that no features are kept.
        """
        kept: Kept = "pixels" if sharded else result_to_keep(self._base, self.family)
        settings = self._settings(kept)
        keys = [self._key(settings, i, t) for i, t in zip(images, texts, strict=True)]
        entries = {key: entry for key in keys if (entry := self._get(key, kept)) is not None}
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
            for key, entry in zip(chunk, self._encode(new, kept), strict=True):
                entries[key] = entry
                self._put(key, entry)
                if self.folder is not None and kept != "pixels":
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
        return weights_behind(self._base, self.family, "states")[0].dtype

    @property
    def _base(self) -> Any:
        return unwrapped(self.model)

    def _settings(self, kept: Kept) -> str:
        """All that an entry depends on but image and prompt."""
        parameters = weights_behind(self._base, self.family, kept)
        state = tuple((id(p), p.data_ptr(), p._version) for p in parameters)
        if self._weights[0] != state:  # all weights are hashed again only where one was touched
            named = ((str(index), p) for index, p in enumerate(parameters))
            self._weights = (state, weights_hash(named))
        processors = [self.processor.image_processor.to_dict(), self.processor.to_dict()]
        return f"{self._weights[1]}{json.dumps(processors, sort_keys=True, default=str)}{kept}"

    @staticmethod
    def _key(settings: str, image: Image, text: str) -> str:
        key = f"{image_hash(image)} {text} {settings}".encode()
        return blake2b(key, digest_size=16).hexdigest()

    def _get(self, key: str, kept: Kept) -> Entry | None:
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        if self.folder is None or kept == "pixels":
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
    def _encode(self, inputs: Sequence[ImageInputs], kept: Kept) -> list[Entry]:
        """Entries: positions, and what is kept, in place of the tower's inputs where it can be."""
        positions = [self._positions(x) for x in inputs]
        if kept == "pixels":
            return [{**x, "positions": p} for x, p in zip(inputs, positions, strict=True)]
        key, index = (STATES, 0) if kept == "states" else ("features", 1)
        results: list[Tensor] = []
        for batch in batches(inputs, pixel_count, ENCODE_PIXELS, ENCODE_BATCH):
            encoded = encode_images(self._base, batch)
            results += [pair[index].to("cpu", copy=True) for pair in encoded]
        return [
            {"ids": x["ids"], "positions": p, key: r}
            for x, p, r in zip(inputs, positions, results, strict=True)
        ]

    def _positions(self, inputs: ImageInputs) -> Tensor:
        """(K, P) rotary positions of the prompt."""
        ids = inputs["ids"]
        if not self.family.mrope:
            return torch.arange(len(ids))[None]
        kinds = token_type_inputs(self._base, ids[None])
        return self._base.model.get_rope_index(
            ids[None], image_grid_thw=inputs["image_grid_thw"], **kinds
        )[0][:, 0]


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key}.features"


def _size(entry: Entry) -> int:
    return sum(x.nbytes for x in entry.values())
