"""Collate function of the data loader: chat prompts and images through the processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..chat import chat_text
from ..vision import process_images


class Collator:
    """Prompts in chat form and, as a DataLoader's collate function, images through the processor.

    In a worker that is ahead of the step. An image is processed once per batch, its rows share the
    result.
    """

    def __init__(self, processor: Any, template: str | None, kwargs: dict[str, Any]) -> None:
        """`template`: in place of the processor's own; `kwargs`: variables of the template."""
        self.processor, self.template, self.kwargs = processor, template, kwargs
        self._texts: dict[str, str] = {}

    def text(self, prompt: Sequence[dict[str, Any]]) -> str:
        """A conversation in chat form, an image in its first question."""
        key = str(prompt)
        if key not in self._texts:
            self._texts[key] = chat_text(
                self.processor, prompt, template=self.template, **self.kwargs
            )
        return self._texts[key]

    def __call__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows, each with "image_inputs": what the processor makes of its image and prompt."""
        texts = [self.text(row["prompt"]) for row in rows]
        keys = [(row["image_id"], text) for row, text in zip(rows, texts, strict=True)]
        first = {key: n for n, key in reversed(list(enumerate(keys)))}
        images = [rows[n]["image"] for n in first.values()]
        inputs = process_images(self.processor, images, [texts[n] for n in first.values()])
        by_key = dict(zip(first, inputs, strict=True))
        return [{**row, "image_inputs": by_key[key]} for row, key in zip(rows, keys, strict=True)]
