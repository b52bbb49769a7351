"""Chat prompts: the one conversation that every image is captioned in."""

from __future__ import annotations

from typing import Any


def messages(prompt: str) -> list[dict[str, Any]]:
    """The conversation whose answer is the caption, as TRL's data sets want it."""
    return [{"role": "user", "content": prompt}]


def said(messages: Any) -> str:
    """What a conversation says, without its images."""
    if isinstance(messages, str):
        return messages
    parts = [m["content"] for m in messages]
    blocks = [[{"text": p}] if isinstance(p, str) else p for p in parts]
    return "\n".join(b["text"].strip() for some in blocks for b in some if b.get("text"))
