"""Collate function of the data loader: chat prompts and images through the processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .vision_cache import read


class Collator:
    """Prompts in chat form and, as a DataLoader's collate function, images read by the processor.

    In a worker that is ahead of the step; each image of a batch is read once. The rows that share
    an image share what was read.
    """

    def __init__(self, processor: Any, template: str | None, told: dict[str, Any]) -> None:
        self.processor, self.template, self.told = processor, template, told
        self._texts: dict[str, str] = {}

    def text(self, prompt: Sequence[dict[str, Any]]) -> str:
        """A conversation in its chat template, with a place for the image in its first question."""
        key = str(prompt)
        if key not in self._texts:
            chat, place = [], [{"type": "image"}]
            for message in prompt:
                content = message["content"]
                parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
                if message["role"] == "user":
                    parts, place = [*place, *parts], []
                chat.append({**message, "content": parts})
            self._texts[key] = self.processor.apply_chat_template(
                chat,
                chat_template=self.template,
                add_generation_prompt=True,
                tokenize=False,
                **self.told,
            )
        return self._texts[key]

    def __call__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows, each with "read": what the processor made of its image and prompt."""
        texts = [self.text(row["prompt"]) for row in rows]
        keys = [(row["image_id"], text) for row, text in zip(rows, texts, strict=True)]
        first = {key: at for at, key in reversed(list(enumerate(keys)))}
        images = [rows[at]["image"] for at in first.values()]
        made = read(self.processor, images, [texts[at] for at in first.values()])
        known = dict(zip(first, made, strict=True))
        return [{**row, "read": known[key]} for row, key in zip(rows, keys, strict=True)]
