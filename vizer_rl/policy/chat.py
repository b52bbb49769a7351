"""Chat prompts: builds every conversation, applies its template, places the answer behind it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .families import FAMILIES, family_of

Messages = Sequence[dict[str, Any]]


def messages(prompt: str) -> list[dict[str, Any]]:
    """The conversation whose answer is the caption, as TRL's data sets want it."""
    return [{"role": "user", "content": prompt}]


def chat_text(
    processor: Any,
    conversation: Messages,
    *,
    image: bool = True,
    template: str | None = None,
    **kwargs: Any,
) -> str:
    """A conversation in its chat template up to the answer; `image`: one in its first question.

    template: in place of the processor's own; kwargs: variables of the template.
    """
    chat, placeholder = [], [{"type": "image"}] * image
    for message in conversation:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if message["role"] == "user":
            blocks, placeholder = [*placeholder, *blocks], []
        chat.append({**message, "content": blocks})
    text: str = processor.apply_chat_template(
        chat, chat_template=template, add_generation_prompt=True, tokenize=False, **kwargs
    )
    return text


def answer_text(processor: Any, chat: str, answer: str) -> str:
    """An answer as it follows a conversation in chat form: behind a space where one belongs."""
    added = tuple(t.content for t in processor.tokenizer.added_tokens_decoder.values())
    bare = not answer or chat[-1:].isspace() or chat.endswith(added)
    return answer if bare else f" {answer}"


def message_text(conversation: str | Messages) -> str:
    """The text of a conversation (TRL's message list, or text already), without its images."""
    if isinstance(conversation, str):
        return conversation
    contents = [message["content"] for message in conversation]
    blocks = [[{"text": c}] if isinstance(c, str) else c for c in contents]
    return "\n".join(b["text"].strip() for content in blocks for b in content if b.get("text"))


def adds_special_tokens(processor: Any, text: str) -> bool:
    """Whether the tokenizer is to add its own: not to a text that begins with BOS, as a chat may.

    So apply_chat_template does it.
    """
    bos = processor.tokenizer.bos_token
    return bos is None or not text.startswith(bos)


def answers_questions(source: str, model_type: str, processor: Any) -> bool:
    """Whether a checkpoint says so: by its name, in its family's way, and a chat template.

    A template that is the family's fallback for base models is none.
    """
    name = re.search(family_of(model_type).instruct, Path(source).name.lower())
    fallbacks = [family.chat_template for family in FAMILIES.values()]
    return name is not None and processor.chat_template not in fallbacks
