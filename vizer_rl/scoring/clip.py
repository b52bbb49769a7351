"""Image-text encoders for rewards and evaluation: frozen open_clip models, each loaded once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import torch
from open_clip.transformer import AttentionalPooler
from PIL.Image import Image
from torch import Tensor
from torch.func import functional_call

from rewards.lib import disk_cache
from rewards.lib.images import image_hash
from rewards.lib.openings import without_opening

from ..assets import ASSETS
from ..config.validate_files import scorer_problems
from ..data.lazy import LazyImages, map_rows
from ..errors import UserError, user_message
from ..policy.weights_hash import weights_hash

STORE_MIN = 256  # images: fewer are quicker encoded than read from the store
BATCH, TEXTS = 64, 256  # images, and texts, encoded together


class OpenClip:
    """An open_clip model (`rewards.Encoder`) that encodes each image id once.

    name: "embedded:a", "embedded:b", "local-dir:PATH" or "ARCHITECTURE/pretrained_tag".
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        store: Path | None = None,
        opening: str = "",
    ) -> None:
        """`store`: a folder where features of many images at once are kept between runs; `opening`:
        what captions begin with, a trigger word, that is no word to it and so left out."""
        self.name, self.device, self.store, self.opening = name, device, store, opening
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
        for module in self.model.modules():  # open_clip leaves these in float32 beside half keys
            if isinstance(module, AttentionalPooler):
                query = torch.nn.Parameter(module.query.to(dtype), requires_grad=False)
                module.register_parameter("query", query)
                module.ln_q.to(dtype)  # plain ones, which on CUDA take their own type alone
                module.ln_k.to(dtype)
        self.tokenizer = open_clip.get_tokenizer(model)
        self.context_length: int = self.tokenizer.context_length
        self.dtype = dtype
        self._features: dict[str, torch.Tensor] = {}
        self._last_texts: tuple[list[str] | None, torch.Tensor] = None, torch.zeros(0)

    @torch.no_grad()
    def image_features(self, ids: Sequence[str], images: Sequence[Image]) -> torch.Tensor:
        """(N, D) unit vectors, float32; `images[i]` is only touched where ids[i] is new."""
        new = {i: row for row, i in reversed(list(enumerate(ids))) if i not in self._features}
        if self.store and len(new) >= STORE_MIN:
            self._encode_stored(new, images)
        else:
            self._encode(new, images)
        return torch.stack([self._features[i] for i in ids])

    def forget(self) -> None:
        """Drop the features of all images: ids that come again are encoded anew."""
        self._features.clear()

    def _encode(self, rows: dict[str, int], images: Sequence[Image]) -> None:
        """Encode images by id; rows: image id -> its row in `images`."""
        ids, pixels = list(rows), map_rows(images, [*rows.values()], self.preprocess)
        for start in range(0, len(ids), BATCH):
            batch = torch.stack(list(islice(pixels, BATCH)))
            features = self.model.encode_image(
                batch.to(self.device, self.dtype), normalize=True
            ).float()
            self._features.update(zip(ids[start : start + BATCH], features, strict=True))
        next(pixels, None)  # ends what shows the progress

    def _encode_stored(self, rows: dict[str, int], images: Sequence[Image]) -> None:
        """Take features from the store, by image and weights; encode and add what it lacks.

        An image is named by its file where it has one, and then not decoded; else by its pixels.
        """
        assert self.store is not None
        names = dict(zip(rows, image_names(images, [*rows.values()]), strict=True))
        key = weights_hash(self.model.named_parameters(), str(self.preprocess), str(self.dtype))
        path = self.store / f"clip-{key}.features"
        content = disk_cache.read(path)
        stored = {} if content is None else safetensors.torch.load(content)
        self._features |= {i: stored[n].to(self.device) for i, n in names.items() if n in stored}
        missing = {i: row for i, row in rows.items() if names[i] not in stored}
        try:
            self._encode(missing, images)
        finally:  # what was encoded before an error or Ctrl-C need not be encoded again
            new = {names[i]: self._features[i].cpu() for i in missing if i in self._features}
            if new:
                disk_cache.write(path, safetensors.torch.save(stored | new))

    @torch.no_grad()
    def text_features(self, captions: Sequence[str]) -> torch.Tensor:
        """(N, D) unit vectors, float32; equal captions are encoded once.

        The same captions again, as from the next reward of a step, are not encoded anew.
        """
        captions = [without_opening(caption, self.opening) for caption in captions]
        unique = list(dict.fromkeys(captions))
        if self._last_texts[0] != unique:
            vectors = encode_text(self.model, self.tokenizer(unique), self.device)
            self._last_texts = unique, vectors
        row = {c: k for k, c in enumerate(unique)}
        return self._last_texts[1][[row[c] for c in captions]]

    def too_long(self, captions: Sequence[str]) -> list[bool]:
        """Whether the end of each caption lies beyond the context and is cut off."""
        length = self.context_length
        # With four times the context a caption that fits has nothing but padding behind it. The
        # last place is left out, for some tokenizers always end with a token of their own.
        captions = [without_opening(caption, self.opening) for caption in captions]
        beyond = self.tokenizer(captions, context_length=4 * length)[:, length:-1]
        return (beyond != beyond[:, :1]).any(1).tolist()


def encode_text(model: Any, tokens: Tensor, device: torch.device) -> Tensor:
    """Unit vectors (N, D), float32, of tokens (N, context_length), on this device.

    A causal tower (Radford et al. 2021, arXiv 2103.00020) reads a text at its last token: texts of
    like length are encoded together, and no place behind the longest of these. Others are whole.
    """
    causal = isinstance(model, open_clip.CLIP) and model.attn_mask is not None
    if not (causal and model.text_pool_type == "argmax"):
        parts = [model.encode_text(t.to(device), normalize=True) for t in tokens.split(TEXTS)]
        return torch.cat(parts).float()
    last, parts = tokens.argmax(-1), []
    order = last.argsort()
    for rows in order.split(TEXTS):
        n = int(last[rows].max()) + 1
        cut = {
            "positional_embedding": model.positional_embedding[:n],
            "attn_mask": model.attn_mask[:n, :n],
        }
        text = {"text": tokens[rows, :n].to(device)}
        parts.append(functional_call(model, cut, kwargs=text)[1])
    return torch.cat(parts).float()[order.argsort()]


def load_or_why(name: str, device: torch.device, opening: str) -> tuple[OpenClip | None, str]:
    """The encoder of a name; else None and why it cannot be loaded, a sentence without its stop.

    Missing, out of reach or damaged weights are such a reason; a bug raises.
    """
    for problem in scorer_problems(name):
        return None, problem
    try:
        return OpenClip(name, device, opening=opening), ""
    except safetensors.SafetensorError as error:
        return None, f"the weights of {name!r} are damaged ({error})"
    except FileNotFoundError as error:  # of an embedded one that is not in this checkout
        return None, str(error).rstrip(".")
    except Exception as error:
        if (message := user_message(error)) is None:
            raise
        return None, message.rstrip(".")


def image_names(images: Sequence[Image], rows: Sequence[int]) -> list[str]:
    """32 hexadecimal digits that name the image of each row: by file if lazy, else by pixels."""
    if isinstance(images, LazyImages) and (identities := images[list(rows)].identities()):
        return identities
    return list(map_rows(images, rows, image_hash))


class Encoders:
    """The encoders of a run, loaded at their first use; `None` is the training scorer."""

    def __init__(
        self,
        default: str,
        device: torch.device,
        dtype: torch.dtype,
        store: Path | None = None,
        opening: str = "",
    ) -> None:
        """store, opening: of each `OpenClip`."""
        self.default, self.device, self.dtype, self.store = default, device, dtype, store
        self.opening = opening
        self._loaded: dict[str, OpenClip] = {}

    def __call__(self, name: str | None = None) -> OpenClip:
        name = name or self.default
        if name not in self._loaded:
            for problem in scorer_problems(name):
                raise UserError(f"encoder {problem}")
            where = self.device, self.dtype, self.store
            self._loaded[name] = OpenClip(name, *where, self.opening)
        return self._loaded[name]
