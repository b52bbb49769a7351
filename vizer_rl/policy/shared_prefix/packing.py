"""Packed rows, G captions behind their one prompt: log-probs and hidden states in one forward.

A group is laid out as its prompt without the last token, then one branch per caption: the prompt's
last token and all caption tokens but the last. So position t of a branch predicts caption token t,
as in a row of its own, and every caption costs as many positions as it has tokens. A branch attends
to the prompt and itself; short groups share a row. Pure tensor code: images are features here.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..vision import image_inputs
from .attention import (
    ALIGN,
    BLOCK,
    PADDING,
    PROMPT,
    attention_mask,
    block_mask,
    model_inputs,
    uses_block_mask,
)

MAX_LOGITS = 2**24  # more are computed in chunks, and again in the backward pass: 64 MiB


class CaptionForward(NamedTuple):
    """Of B captions of at most T tokens, 0 where a caption has no token.

    logps (B, T): log p of each token in nats, at the sampling temperature; entropies (B, T): of the
    distribution it was drawn from; hidden (B, T, D): last hidden state at the position before it.
    """

    logps: Tensor
    entropies: Tensor | None
    hidden: Tensor | None


@dataclass(frozen=True)
class Prompt:
    """A prompt with its image, as the language model reads it.

    ids: (P,) long on the CPU; positions: (K, P), K = 1, or 3 for rotary positions in time, height
    and width; features: (n, D), the connector's output at the n image tokens, or None where what
    learns makes them in every pass from `vision`: what the vision tower takes, or its output.
    """

    ids: Tensor
    positions: Tensor
    features: Tensor | None
    vision: dict[str, Tensor]

    @property
    def next_position(self) -> int:
        """Where the caption begins, in all K kinds of position."""
        return int(self.positions.max()) + 1


@dataclass(frozen=True)
class Layout:
    """Groups laid out in R rows of N positions.

    ids (R, N); positions (K, R, N); group, branch (R, N): the group and the caption in it that a
    position belongs to; target_idx (M,): flat index of the position that predicts the m-th caption
    token, captions one behind the other; prompts: index of the prompts in the order of the rows.
    """

    ids: Tensor
    positions: Tensor
    group: Tensor
    branch: Tensor
    target_idx: Tensor
    prompts: list[int]

    def to(self, device: torch.device) -> Layout:
        """The same on a device."""
        names = ("ids", "positions", "group", "branch", "target_idx")
        moved = {n: getattr(self, n).to(device, non_blocking=True) for n in names}
        return Layout(prompts=self.prompts, **moved)


def unwrapped(model: Any) -> Any:
    """The model of transformers inside DDP and PEFT."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def layout(
    prompts: Sequence[Prompt],
    prompt_idx: Sequence[int],
    captions: Sequence[Sequence[int]],
    align: int = ALIGN,
) -> Layout:
    """Lay out captions (token ids) behind their prompts: `prompt_idx[i]` is that of caption i.

    The length of the rows is a multiple of `align`.
    """
    members: dict[int, list[int]] = {}
    for i, p in enumerate(prompt_idx):
        members.setdefault(p, []).append(i)
    bodies = {p: len(prompts[p].ids) - 1 for p in members}
    sizes = {p: bodies[p] + sum(len(captions[i]) for i in members[p]) for p in members}
    rows = _fill(sizes)
    length = -(-max(sum(sizes[p] for p in row) for row in rows) // align) * align
    kinds = prompts[0].positions.shape[0]
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    positions = torch.zeros(kinds, len(rows), length, dtype=torch.long)
    group = torch.full((len(rows), length), PADDING)
    branch = torch.full((len(rows), length), PADDING)
    starts = [0] * len(captions)
    for r, row in enumerate(rows):
        start = 0
        for p in row:
            prompt, body = prompts[p], start + bodies[p]
            group[r, start : start + sizes[p]] = p
            branch[r, start:body] = PROMPT
            ids[r, start:body] = prompt.ids[:-1]
            positions[:, r, start:body] = prompt.positions[:, :-1]
            start = body
            last, first = int(prompt.ids[-1]), prompt.next_position
            for k, i in enumerate(members[p], 1):
                if size := len(captions[i]):
                    end = start + size
                    ids[r, start:end] = torch.tensor([last, *captions[i][:-1]])
                    positions[:, r, start] = prompt.positions[:, -1]
                    positions[:, r, start + 1 : end] = torch.arange(first, first + size - 1)
                    branch[r, start:end] = k
                    starts[i] = r * length + start
                    start = end
    targets = [torch.arange(s, s + len(c)) for s, c in zip(starts, captions, strict=True)]
    order = [p for row in rows for p in row]
    return Layout(ids, positions, group, branch, torch.cat(targets), order)


def _fill(sizes: dict[int, int]) -> list[list[int]]:
    """Rows of groups, no row longer than the longest group: first fit, the longest first."""
    limit, free = max(sizes.values()), list[int]()  # free: positions left in each row
    rows: list[list[int]] = []
    for p in sorted(sizes, key=lambda p: (-sizes[p], p)):
        row = next((r for r, left in enumerate(free) if left >= sizes[p]), None)
        if row is None:
            rows.append([p])
            free.append(limit - sizes[p])
        else:
            rows[row].append(p)
            free[row] -= sizes[p]
    return rows


class Targets(NamedTuple):
    """Targets of the caption head: flat index of M positions, and the M tokens after them."""

    idx: Tensor
    tokens: Tensor


def add_caption_head(model: Any, temperature: float) -> None:
    """Let `model(..., captions=Targets)` return (log_probs (M,), entropies (M,), hidden (M, D)).

    Only caption positions meet the head. It stays one call of the model, so that DDP, FSDP and PEFT
    wrap it as any other. Without `captions` the forward is as it was.
    """
    original = model.forward

    @functools.wraps(original)  # `generate` checks its arguments against the signature
    def forward(self: Any, *args: Any, captions: Targets | None = None, **kwargs: Any) -> Any:
        if captions is None:
            return original(*args, **kwargs)
        states = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state
        hidden = states.flatten(0, 1)[captions.idx]
        head = self.get_output_embeddings()
        return *log_probs(hidden, head, captions.tokens, temperature), hidden

    model.forward = types.MethodType(forward, model)


def log_probs(
    hidden: Tensor, head: nn.Linear, tokens: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """(M,) log p(tokens) and (M,) entropies of softmax(head(hidden) / temperature), float32.

    hidden (M, D), tokens (M,). More than MAX_LOGITS logits are never held: they are computed
    in chunks, again in the backward pass.
    """

    def chunk(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logps = torch.log_softmax(head(hidden).float() / temperature, dim=-1)
        return logps.gather(-1, tokens[:, None])[:, 0], -(logps.exp() * logps).sum(-1)

    size = max(1, MAX_LOGITS // head.weight.shape[0])
    if len(tokens) <= size:
        return chunk(hidden, tokens)
    parts = [
        checkpoint(chunk, h, t, use_reentrant=False)
        for h, t in zip(hidden.split(size), tokens.split(size), strict=True)
    ]
    logps, entropies = zip(*parts, strict=True)
    return torch.cat(logps), torch.cat(entropies)


def caption_forward(
    model: Any,
    prompts: Sequence[Prompt],
    prompt_idx: Sequence[int],
    completion_ids: Tensor,
    completion_mask: Tensor,
) -> CaptionForward:
    """Log-probs, entropies and hidden states of captions (B, T), packed behind their prompts.

    `prompt_idx[i]` is the index in `prompts` of caption i. `model` may be wrapped; the model inside
    has got its caption head. A caption's mask is ones, then zeros; one that is masked whole
    takes no part.
    """
    device = completion_ids.device
    lengths = completion_mask.sum(1).tolist()
    captions = [ids[:n] for ids, n in zip(completion_ids.tolist(), lengths, strict=True)]
    blocks = uses_block_mask(unwrapped(model))
    packed = layout(prompts, prompt_idx, captions, BLOCK if blocks else ALIGN).to(device)
    mask = (block_mask if blocks else attention_mask)(packed.group, packed.branch)
    present = completion_mask.bool()
    output = model(
        input_ids=packed.ids,
        **model_inputs(packed.positions, mask),
        **image_inputs(unwrapped(model), [prompts[p] for p in packed.prompts]),
        captions=Targets(packed.target_idx, completion_ids[present]),
    )

    def spread(x: Tensor) -> Tensor:
        return x.new_zeros(*present.shape, *x.shape[1:]).index_put((present,), x)

    return CaptionForward(*(spread(x) for x in output))
