"""Frozen image-text encoders for rewards and evaluation: open_clip models, each in memory once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import open_clip
import torch
from PIL.Image import Image
from safetensors.torch import load_file, save_file

from rewards.lib.images import image_hash

from ..assets import ASSETS
from ..config.validate_files import scorer_problems
from ..errors import UserError
from ..policy.weights_hash import weights_hash

MANY = 256  # images: fewer are quicker encoded than looked up


class OpenClip:
    """An open_clip model (`rewards.Encoder`); each image id is encoded once and remembered.

    name: "embedded:a", "embedded:b", "local-dir:PATH" or "ARCHITECTURE/pretrained_tag".
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        store: Path | None = None,
    ) -> None:
        """`store`: a folder where features of many images at once are kept between runs."""
        self.name, self.device, self.store = name, device, store
        kind, _, rest = name.partition(":")
        if kind == "embedded":
            folder = (ASSETS / f"scorer-{rest}").resolve()
            name = f"local-dir:{folder}"
        elif kind == "local-dir":
            name = f"local-dir:{Path(rest).expanduser()}"
        model, tag = (name, None) if name.startswith("local-dir:") else name.split("/", 1)
        precision = {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(dtype, "fp32")
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(
            model, pretrained=tag, precision=precision, device=device
        )
        self.model.eval().requires_grad_(False)
        self.tokenizer = open_clip.get_tokenizer(model)
        self.context_length: int = self.tokenizer.context_length
        self.dtype = dtype
        self._features: dict[str, torch.Tensor] = {}
        self._said: tuple[list[str] | None, torch.Tensor] = None, torch.zeros(0)

    @torch.no_grad()
    def image_features(self, ids: Sequence[str], images: Sequence[Image]) -> torch.Tensor:
        """(N, D) unit vectors, float32; `images[i]` is only touched where ids[i] is new."""
        where = {i: row for row, i in reversed(list(enumerate(ids))) if i not in self._features}
        new = list(where)
        if self.store and len(new) >= MANY:
            self._recall({i: image_hash(images[where[i]]) for i in new}, where, images)
            new = []
        self._encode(new, where, images)
        return torch.stack([self._features[i] for i in ids])

    def _encode(self, new: list[str], where: dict[str, int], images: Sequence[Image]) -> None:
        for start in range(0, len(new), 64):
            some = new[start : start + 64]
            pixels = torch.stack([self.preprocess(images[where[i]]) for i in some])
            features = self.model.encode_image(
                pixels.to(self.device, self.dtype), normalize=True
            ).float()
            self._features.update(zip(some, features, strict=True))

    def _recall(
        self, prints: dict[str, str], where: dict[str, int], images: Sequence[Image]
    ) -> None:
        """Take features from the store, by pixels and weights; encode and add what it lacks."""
        assert self.store is not None
        key = weights_hash(self.model, str(self.preprocess), str(self.dtype))
        path = self.store / f"clip-{key}.safetensors"
        known = load_file(path) if path.exists() else {}
        found = {i: known[p].to(self.device) for i, p in prints.items() if p in known}
        self._features |= found
        self._encode(missing := [i for i in prints if i not in found], where, images)
        if missing:
            known |= {prints[i]: self._features[i].cpu() for i in missing}
            self.store.mkdir(parents=True, exist_ok=True)
            save_file(known, path)

    @torch.no_grad()
    def text_features(self, captions: Sequence[str]) -> torch.Tensor:
        """(N, D) unit vectors, float32; equal captions are encoded once.

        The same captions asked for again, as by the next reward of a step, are not encoded anew.
        """
        unique = list(dict.fromkeys(captions))
        if self._said[0] != unique:
            parts = [
                self.model.encode_text(
                    self.tokenizer(unique[i : i + 256]).to(self.device), normalize=True
                )
                for i in range(0, len(unique), 256)
            ]
            self._said = unique, torch.cat(parts).float()
        row = {c: k for k, c in enumerate(unique)}
        return self._said[1][[row[c] for c in captions]]

    def too_long(self, captions: Sequence[str]) -> list[bool]:
        """Whether the end of each caption lies beyond the context and is not seen."""
        length = self.context_length
        # Read with four times the room: a caption that fits has nothing but padding there. The
        # last place is left out, for some tokenizers always end with a token of their own.
        beyond = self.tokenizer(list(captions), context_length=4 * length)[:, length:-1]
        return (beyond != beyond[:, :1]).any(1).tolist()


class Encoders:
    """The encoders of a run, loaded when first asked for; `None` is the training scorer."""

    def __init__(
        self, default: str, device: torch.device, dtype: torch.dtype, store: Path | None = None
    ) -> None:
        self.default, self.device, self.dtype, self.store = default, device, dtype, store
        self._loaded: dict[str, OpenClip] = {}

    def __call__(self, name: str | None = None) -> OpenClip:
        name = name or self.default
        if name not in self._loaded:
            for why in scorer_problems(name):
                raise UserError(f"encoder {why}")
            self._loaded[name] = OpenClip(name, self.device, self.dtype, self.store)
        return self._loaded[name]
