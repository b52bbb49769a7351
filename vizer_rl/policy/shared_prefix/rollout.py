"""Rollout: the rows of a sampling step and their prompts, each image and each prompt once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import send_to_device
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from .packing import CaptionForward, Prompt, caption_forward
from .vision_cache import VisionCache

IMAGE_COLUMNS = ("image", "image_inputs")  # they stay here: TRL gets text and the image's id
# TRL's batches carry each row's prompt index under this key: of what TRL's loss hands on to
# _get_per_token_logps_and_entropies, it is cut and shuffled by rows and free, as rows are text.
PROMPT_IDX_KEY = "pixel_values"


@dataclass
class Rollout:
    """B rows of images and what they became.

    prompt_idx: (B,) index in `prompts` of each row, in the order in which they were sampled;
    old_logps: (B, T) log-probs at sampling, where the trainer is going to ask for them; states:
    (B, T, D) last hidden states before each token, of the last pass over all rows; own_opening:
    (B,) whether a row began by itself with the opening, of `opening_tokens`; None: there is none.
    """

    rows: Sequence[dict[str, Any]]
    prompts: list[Prompt] = field(default_factory=list)
    prompt_idx: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    old_logps: Tensor | None = None
    states: Tensor | None = None
    own_opening: Tensor | None = None
    opening_tokens: int = 0

    @property
    def images(self) -> list[Image]:
        """The image of each row."""
        return [row["image"] for row in self.rows]

    @property
    def image_ids(self) -> list[str]:
        """The id of the image of each row."""
        return [row["image_id"] for row in self.rows]

    def texts(self) -> list[dict[str, Any]]:
        """The rows without their images."""
        return [{k: v for k, v in row.items() if k not in IMAGE_COLUMNS} for row in self.rows]

    def with_images(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows as TRL has them, their images beside them again."""
        return [row | {"image": image} for row, image in zip(rows, self.images, strict=True)]

    def encode_prompts(
        self, cache: VisionCache, texts: Sequence[str], device: torch.device, sharded: bool = False
    ) -> None:
        """Set prompts and prompt_idx; texts: of the rows, in chat form; sharded: weights are."""
        keys = [(row["image_id"], text) for row, text in zip(self.rows, texts, strict=True)]
        first = {key: n for n, key in reversed(list(enumerate(keys)))}
        chosen = sorted(first.values())
        self.prompts = cache.prompts(
            [self.rows[n]["image"] for n in chosen],
            [texts[n] for n in chosen],
            [sent.inputs if (sent := self.rows[n].get("image_inputs")) else None for n in chosen],
            sharded=sharded,
        )
        index = {keys[n]: i for i, n in enumerate(chosen)}
        self.prompt_idx = torch.tensor([index[key] for key in keys], device=device)

    def state_dict(self) -> dict[str, Any]:
        """Prompts and their indices, of plain tensors; images stay behind: they are scored."""
        prompts = [{**vars(prompt)} for prompt in self.prompts]
        return {"prompts": prompts, "prompt_idx": self.prompt_idx}

    @staticmethod
    def from_state(state: dict[str, Any], device: torch.device) -> Rollout:
        """The rollout of a `state_dict`, on a device."""
        on = functools.partial(send_to_device, device=device)
        prompts = [
            Prompt(p["ids"], p["positions"], on(p["features"]), on(p["vision"]))
            for p in state["prompts"]
        ]
        return Rollout([], prompts, on(state["prompt_idx"]))

    def keep_old_logps(self, logps: Sequence[Sequence[float]]) -> None:
        """Keep the log-probs at sampling, as (B, T)."""
        padded = pad_sequence([torch.tensor(row) for row in logps], batch_first=True)
        self.old_logps = padded.to(self.prompt_idx.device)

    def keep_opening(self, tokens: int, own: Sequence[bool]) -> None:
        """Keep how many tokens the opening of all rows has, and whose of them it is by itself."""
        self.opening_tokens = tokens
        self.own_opening = torch.tensor(own, device=self.prompt_idx.device)

    def take_old_logps(self, mask: Tensor) -> Tensor | None:
        """Those log-probs, padded like the mask (B, T), the first time; then None."""
        if self.old_logps is None:
            return None
        padded = pad(self.old_logps, (0, mask.shape[1] - self.old_logps.shape[1])) * mask
        self.old_logps = None
        return padded

    def forward(
        self,
        model: Any,
        prompt_idx: Tensor | None,
        ids: Tensor,
        mask: Tensor,
        size: int | None = None,
    ) -> CaptionForward:
        """`caption_forward` of captions (B, T), `size` together; prompt_idx None: of all rows."""
        idx = self.prompt_idx if prompt_idx is None else prompt_idx
        chunks = [x.split(size or len(idx)) for x in (idx, ids, mask)]
        parts = [
            caption_forward(model, self.prompts, p.tolist(), i, m)
            for p, i, m in zip(*chunks, strict=True)
        ]
        columns = zip(*parts, strict=True)
        whole = parts[0] if len(parts) == 1 else CaptionForward(*map(torch.cat, columns))
        if prompt_idx is None:
            self.states = whole.hidden
        return whole

    def tokens(self, mask: Tensor) -> tuple[int, int]:
        """Number of tokens with every prompt once, and with one row per caption (mask (B, T))."""
        captions = int(mask.sum())
        lengths = [len(prompt.ids) for prompt in self.prompts]
        return sum(lengths) + captions, sum(lengths[i] for i in self.prompt_idx.tolist()) + captions


def whole_groups(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows, those of a prompt one behind the other, in as many batches of the same size.

    TRL has shuffled single rows; prompts stay in the order in which they first come. Batches hold
    tensors with rows first, and scalars that are the same in all.
    """
    prompt_idx = torch.cat([batch[PROMPT_IDX_KEY] for batch in batches]).tolist()
    rank = {i: n for n, i in enumerate(dict.fromkeys(prompt_idx))}
    order = torch.tensor(sorted(range(len(prompt_idx)), key=lambda row: rank[prompt_idx[row]]))
    size = len(prompt_idx) // len(batches)

    def regroup(name: str) -> list[Any]:
        values = [batch[name] for batch in batches]
        if not (isinstance(values[0], Tensor) and values[0].ndim):
            return values
        return list(torch.cat(values)[order.to(values[0].device)].split(size))

    columns = {name: regroup(name) for name in batches[0]}
    return [{name: column[n] for name, column in columns.items()} for n in range(len(batches))]
