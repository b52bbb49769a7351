"""Last hidden states of captions packed behind their prompts: an image's captions share its pass.

What `hidden_states` gives one row per caption, up to rounding, for a part of its price.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from PIL.Image import Image
from torch import Tensor

from ..policy.families import Family
from ..policy.shared_prefix.attention import ALIGN, attention_mask, model_inputs
from ..policy.shared_prefix.packing import layout
from ..policy.shared_prefix.vision_cache import VisionCache
from ..policy.vision import image_inputs

MEMORY = 2**28  # bytes of prompts with their images' features that are kept
TOGETHER = 16  # images of one pass


class PackedStates:
    """Packed passes of a model as it stands: mode, adapter, gradient."""

    def __init__(self, model: Any, processor: Any, family: Family) -> None:
        self.model = model
        self.prompts = VisionCache(model, processor, family, memory=MEMORY)

    def __call__(
        self, chat: str, completions: Sequence[list[int]], images: Sequence[Image]
    ) -> Iterator[Tensor]:
        """Per caption of T token ids (T + 1, D): before each token, and behind the last one."""
        pictures = [images[row] for row in range(len(completions))]
        rows: dict[int, list[int]] = {}  # of each image, neighbours or not
        for row, image in enumerate(pictures):
            rows.setdefault(id(image), []).append(row)
        groups, states = list(rows.values()), dict[int, Tensor]()
        for start in range(0, len(groups), TOGETHER):
            chunk = groups[start : start + TOGETHER]
            order = [row for group in chunk for row in group]
            index = [k for k, group in enumerate(chunk) for _ in group]
            # The token behind a caption is not read: its position is that of the last state.
            captions = [[*completions[row], 0] for row in order]
            hidden = self._pass(chat, [pictures[group[0]] for group in chunk], index, captions)
            states |= dict(zip(order, hidden.split([len(c) for c in captions]), strict=True))
        return (states[row] for row in range(len(completions)))

    def _pass(
        self, chat: str, images: list[Image], index: list[int], captions: list[list[int]]
    ) -> Tensor:
        """(M, D) states before each token of the captions; index: of the image of each."""
        prompts = self.prompts.prompts(images, [chat] * len(images))
        packed = layout(prompts, index, captions, ALIGN).to(self.model.device)
        mask = attention_mask(packed.group, packed.branch)
        states = self.model.model(
            input_ids=packed.ids,
            **model_inputs(packed.positions, mask),
            **image_inputs(self.model, [prompts[p] for p in packed.prompts]),
            use_cache=False,
        ).last_hidden_state
        chosen: Tensor = states.flatten(0, 1)[packed.target_idx]
        return chosen
