"""The rows of one rollout and the prompts they have: each image and its prompt once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from .packing import CaptionForward, Prompt, caption_forward
from .vision_cache import VisionCache

BESIDE = ("image", "read")  # columns that stay here: TRL sees text and the image's id


@dataclass
class Rollout:
    """B rows of images and what they became.

    of: (B,) which of `prompts` a row has, in the order in which they were sampled; old: (B, T)
    log-probs at sampling, where the trainer is going to ask for them.
    """

    rows: Sequence[dict[str, Any]]
    prompts: list[Prompt] = field(default_factory=list)
    of: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    old: Tensor | None = None

    @property
    def images(self) -> list[Image]:
        """The image of each row."""
        return [row["image"] for row in self.rows]

    def texts(self) -> list[dict[str, Any]]:
        """The rows without their images."""
        return [{k: v for k, v in row.items() if k not in BESIDE} for row in self.rows]

    def look(self, features: VisionCache, texts: Sequence[str], device: torch.device) -> None:
        """Find the prompts of the rows, whose texts (in chat form) these are."""
        keys = [(row["image_id"], text) for row, text in zip(self.rows, texts, strict=True)]
        first = {key: at for at, key in reversed(list(enumerate(keys)))}
        at = sorted(first.values())
        which = {keys[row]: n for n, row in enumerate(at)}
        self.prompts = features.prompts(
            [self.rows[row]["image"] for row in at],
            [texts[row] for row in at],
            [self.rows[row].get("read") for row in at],
        )
        self.of = torch.tensor([which[key] for key in keys], device=device)

    def keep_old(self, logps: Sequence[Sequence[float]]) -> None:
        """Remember the log-probs at sampling, as (B, T)."""
        rows = [torch.tensor(row) for row in logps]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        self.old = padded.to(self.of.device)

    def forward(
        self, model: Any, of: Tensor | None, ids: Tensor, mask: Tensor, size: int | None = None
    ) -> CaptionForward:
        """`caption_forward` of captions (B, T), `size` at a time; of None: of all rows in order."""
        of = self.of if of is None else of
        size = size or len(of)
        parts = [
            caption_forward(model, self.prompts, some.tolist(), i, m)
            for some, i, m in zip(of.split(size), ids.split(size), mask.split(size), strict=True)
        ]
        columns = zip(*parts, strict=True)
        return parts[0] if len(parts) == 1 else CaptionForward(*map(torch.cat, columns))

    def tokens(self, mask: Tensor) -> tuple[int, int]:
        """How many tokens there are to compute: once each, and with one row per caption (mask)."""
        captions = int(mask.sum())
        lengths = [len(prompt.ids) for prompt in self.prompts]
        return sum(lengths) + captions, sum(lengths[n] for n in self.of.tolist()) + captions


def whole_groups(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows, those of a prompt one behind the other, in as many batches of the same size.

    TRL has shuffled single rows; prompts stay in the order in which they first come. Batches hold
    tensors with rows first, and scalars that are the same in all.
    """
    of = torch.cat([batch["pixel_values"] for batch in batches]).tolist()
    rank = {which: n for n, which in enumerate(dict.fromkeys(of))}
    order = torch.tensor(sorted(range(len(of)), key=lambda row: rank[of[row]]))
    size = len(of) // len(batches)

    def regroup(name: str) -> list[Any]:
        values = [batch[name] for batch in batches]
        if not (isinstance(values[0], Tensor) and values[0].ndim):
            return values
        return list(torch.cat(values)[order.to(values[0].device)].split(size))

    columns = {name: regroup(name) for name in batches[0]}
    return [{name: column[n] for name, column in columns.items()} for n in range(len(batches))]
