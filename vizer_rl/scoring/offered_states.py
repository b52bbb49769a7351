"""Hidden states that the trainer has from its own pass of the reference policy, offered to rewards.

A reward that reads the captions of the rollout under the reference needs no pass of its own then,
and for other captions of these images no pass of the vision tower.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL.Image import Image
from torch import Tensor

from ..policy.shared_prefix.packing import Prompt


class OfferedStates:
    """The states of one rollout's captions, by their image, the very object, and token ids."""

    def __init__(self) -> None:
        self._images: list[Image] = []  # kept, so that no other object takes their place
        self._states: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        self._prompts: dict[int, Prompt] = {}

    def replace(
        self,
        images: Sequence[Image],
        completion_ids: Sequence[list[int]],
        states: Tensor | None,
        prompts: Sequence[Prompt] = (),
    ) -> None:
        """Take those of B completions, (B, T, D) before each token; None: there are none.

        A completion's last token is its end, so there is a state behind its caption. prompts: of
        each image, or none.
        """
        self._images = list(images)
        self._prompts = dict(zip(map(id, self._images), prompts, strict=False))
        rows = zip(self._images, completion_ids, states, strict=True) if states is not None else ()
        self._states = {
            (id(image), tuple(ids[:-1])): hidden[: len(ids)] for image, ids, hidden in rows if ids
        }

    def find(
        self, images: Sequence[Image] | None, completions: Sequence[list[int]]
    ) -> list[Tensor | None]:
        """(T + 1, D) of each caption's T token ids, None where it was not offered."""
        return self._lookup(images, completions)

    def _lookup(
        self, images: Sequence[Image] | None, completions: Sequence[list[int]]
    ) -> list[Tensor | None]:
        if images is None or not self._states:
            return [None] * len(completions)
        pairs = enumerate(completions)
        return [self._states.get((id(images[row]), tuple(ids))) for row, ids in pairs]

    def has(self, images: Sequence[Image], completions: Sequence[list[int]]) -> list[bool]:
        """Whether the states of each caption were offered."""
        return [states is not None for states in self._lookup(images, completions)]

    def prompt(self, image: Image) -> Prompt | None:
        """An image with its prompt, as the trainer's passes take it; None where not offered."""
        return self._prompts.get(id(image))
