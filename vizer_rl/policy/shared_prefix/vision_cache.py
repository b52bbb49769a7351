"""What the language model sees of an image, computed once per image while the tower is frozen.

An image is read by the processor and goes through vision tower and connector once; sampling, old,
reference and policy passes, evaluation and later epochs take the result from memory, or from disk.
With a trainable tower what the processor read is kept instead, and every pass looks for itself.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from rewards.lib.images import image_hash

from ..families import FAMILIES, Family
from .packing import Prompt, inner, join

MEMORY = 4 * 2**30  # bytes of host memory: 1,000 images of 1,024 tokens, width 2,048, in bfloat16
AT_ONCE = 8  # images that go through the tower together

Read = dict[str, Tensor]  # what the processor made of one image and its prompt: "ids" and pixels


def read(processor: Any, images: Sequence[Image], texts: Sequence[str]) -> list[Read]:
    """Tokenise prompts (already in chat form) with their images: one `Read` each, on the CPU."""
    bos = processor.tokenizer.bos_token
    special = bos is None or not texts[0].startswith(bos)  # as apply_chat_template does
    made = processor(
        images=[[image] for image in images], text=list(texts), add_special_tokens=special
    )
    ids = [torch.tensor(row) for row in made["input_ids"]]
    pixels = made["pixel_values"]
    pixels = pixels if isinstance(pixels, Tensor) else [torch.as_tensor(p) for p in pixels]
    if "image_grid_thw" in made:  # patches of all images one behind the other
        grids = torch.as_tensor(made["image_grid_thw"])
        parts = torch.as_tensor(pixels).split(grids.prod(-1).tolist())
        return [
            {"ids": i, "pixel_values": p.clone(), "image_grid_thw": g[None]}
            for i, p, g in zip(ids, parts, grids, strict=True)
        ]
    masks = made["pixel_attention_mask"]
    return [
        {"ids": i, "pixel_values": p[None, :n], "pixel_attention_mask": m[None, :n]}
        for i, p, m, n in zip(ids, pixels, masks, map(_tiles, masks), strict=True)
    ]


def _tiles(mask: Tensor) -> int:
    """How many of an image's tiles (tiles, height, width) are not there to fill up the batch."""
    return int(mask.flatten(1).any(1).sum())


class VisionCache:
    """Prompts with their images' features, each image once: in memory (LRU) and, if told, on disk.

    An entry is found by the image's pixels, its prompt, the processor's settings and the weights of
    tower and connector: none of them can change unseen, as long as weights change by ways that
    autograd counts (not through `.data`).
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
        """`cuda`: prompts go through a CUDA graph and the kernel that is the quicker one."""
        self.model, self.processor, self.family = model, processor, family
        self.memory, self.folder, self.cuda = memory, folder, cuda
        self.sharded = False  # weights spread over devices: all must go through the tower together
        self._entries: OrderedDict[str, Read] = OrderedDict()
        self._bytes = self._asked = self._found = 0
        self._weights: tuple[Any, str] = ((), "")

    @property
    def frozen(self) -> bool:
        """Whether an image's features can be kept: nothing up to the language model learns."""
        return not self.sharded and not any(p.requires_grad for p in self._sight())

    def prompts(
        self, images: Sequence[Image], texts: Sequence[str], known: Sequence[Read | None] = ()
    ) -> list[Prompt]:
        """Prompts with features on the model's device; `known`: what a worker has read of them."""
        settings, frozen = self._settings(), self.frozen
        keys = [self._key(settings, i, t) for i, t in zip(images, texts, strict=True)]
        found = {key: entry for key in keys if (entry := self._recall(key, frozen)) is not None}
        self._asked += len(keys)
        self._found += sum(key in found for key in keys)
        missing = {key: n for n, key in reversed(list(enumerate(keys))) if key not in found}
        if missing:
            at = list(missing.values())
            made = [one for n in at if known and (one := known[n]) is not None]
            if len(made) < len(at):
                made = read(self.processor, [images[n] for n in at], [texts[n] for n in at])
            for key, entry in zip(missing, self._look(made, frozen), strict=True):
                found[key] = entry
                self._keep(key, entry)
                if self.folder is not None and frozen:
                    self._write(self.folder, key, entry)
        device = self._base.device
        return [_prompt(found[key], device) for key in keys]

    def hit_rate(self) -> float:
        """Share of prompts that needed no look at the image since this was last asked."""
        asked, found = self._asked, self._found
        self._asked = self._found = 0
        return found / asked if asked else 0.0

    @property
    def _base(self) -> Any:
        return inner(self.model)

    def _sight(self) -> list[torch.nn.Parameter]:
        modules = [self._base.get_submodule(name) for name in self.family.sight]
        return [p for module in modules for p in module.parameters()]

    def _settings(self) -> str:
        """All that an entry depends on but image and prompt."""
        parameters = self._sight() if self.frozen else []
        state = tuple((id(p), p.data_ptr(), p._version) for p in parameters)
        if self._weights[0] != state:  # a look at every weight, only where one was touched
            digest = blake2b(digest_size=16)
            for p in parameters:
                digest.update(f"{p.dtype}{tuple(p.shape)}".encode())
                digest.update(p.detach().contiguous().view(torch.uint8).cpu().numpy().data)
            self._weights = (state, digest.hexdigest())
        about = self.processor.image_processor.to_dict()
        told = json.dumps([about, self.processor.to_dict()], sort_keys=True, default=str)
        return f"{self._weights[1]}{told}{self.frozen}"

    @staticmethod
    def _key(settings: str, image: Image, text: str) -> str:
        told = f"{image_hash(image)} {text} {settings}".encode()
        return blake2b(told, digest_size=16).hexdigest()

    def _recall(self, key: str, frozen: bool) -> Read | None:
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        path = self.folder / f"{key}.safetensors" if self.folder is not None and frozen else None
        if path is None or not path.is_file():
            return None
        entry = load_file(path)
        self._keep(key, entry)
        return entry

    @staticmethod
    def _write(folder: Path, key: str, entry: Read) -> None:
        """Put an entry on disk, whole or not at all: other runs may look there."""
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{key}.{os.getpid()}.part"
        save_file(entry, part)
        part.replace(folder / f"{key}.safetensors")

    def _keep(self, key: str, entry: Read) -> None:
        self._entries[key] = entry
        self._bytes += _size(entry)
        while self._bytes > self.memory and len(self._entries) > 1:
            self._bytes -= _size(self._entries.popitem(last=False)[1])

    @torch.no_grad()
    def _look(self, made: Sequence[Read], frozen: bool) -> list[Read]:
        """Entries to keep: positions, and features in place of pixels where the tower is frozen."""
        entries = [{**one, "positions": self._positions(one)} for one in made]
        if not frozen:
            return entries
        for start in range(0, len(entries), AT_ONCE):
            some = entries[start : start + AT_ONCE]
            vision = join([_vision(entry, self._base.device) for entry in some])
            seen = self._base.model.get_image_features(**vision).pooler_output
            for entry, features in zip(some, seen, strict=True):
                for name in vision:
                    del entry[name]
                entry["features"] = features.to("cpu", copy=True)
        return entries

    def _positions(self, one: Read) -> Tensor:
        """(K, P) rotary positions of the prompt."""
        ids = one["ids"]
        if not self.family.mrope:
            return torch.arange(len(ids))[None]
        kinds = (ids == self._base.config.image_token_id).int()
        return self._base.model.get_rope_index(
            ids[None], mm_token_type_ids=kinds[None], image_grid_thw=one["image_grid_thw"]
        )[0][:, 0]


def _vision(entry: Read, device: torch.device) -> dict[str, Tensor]:
    names = ("pixel_values", "pixel_attention_mask", "image_grid_thw")
    return {name: entry[name].to(device) for name in names if name in entry}


def _prompt(entry: Read, device: torch.device) -> Prompt:
    seen = entry.get("features")
    features = None if seen is None else seen.to(device, non_blocking=True)
    return Prompt(entry["ids"], entry["positions"], features, _vision(entry, device))


def _size(entry: Read) -> int:
    return sum(x.nbytes for x in entry.values())


def of_run(
    run: Any, model: Any, processor: Any, args: Any = None, say: Callable[[str], Any] = str
) -> VisionCache | None:
    """What lets a group share its prompt; None, and `say` is told why, where it cannot."""
    if run.engine.shared_prefix == "off":
        say("one row per caption, as TRL does it: engine.shared_prefix is off")
        return None
    entry, attention = FAMILIES[run.family], model.config.get_text_config()._attn_implementation
    why_not = ""
    if not entry.packs:
        why_not = f"family {run.family} is not covered by the shared prefix"
    elif attention != "sdpa":
        why_not = f"policy.attn_implementation {attention} takes no mask of branches; sdpa does"
    elif args and (args.use_transformers_continuous_batching or args.cache_implementation):
        why_not = "train.use_transformers_continuous_batching and cache_implementation are TRL's"
    elif args and {"num_beams", "num_return_sequences"} & set(args.generation_kwargs or ()):
        why_not = "train.generation_kwargs asks for more than sampling"
    if why_not:
        say(f"one row per caption, as TRL does it: {why_not}")
        return None
    folder = Path(run.engine.vision_cache).expanduser() if run.engine.vision_cache else None
    cuda = run.engine.cuda == "auto" and model.device.type == "cuda"
    return VisionCache(model, processor, entry, folder=folder, cuda=cuda)
