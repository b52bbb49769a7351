"""A group of captions behind its one prompt: log-probs and hidden states in one forward call.

A group is laid out as its prompt without the last token, then one branch per caption: the prompt's
last token and all caption tokens but the last. So position t of a branch predicts caption token t,
as in a row of its own, and every caption costs as many positions as it has tokens. A branch sees
the prompt and itself; short groups share a row. Pure tensor code: images are features here.
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

from .attention import ALIGN, BLOCK, PADDING, PROMPT, block_mask, by_blocks, mask, model_inputs

LOGITS_AT_ONCE = 2**24  # more are computed in chunks, and again in the backward pass: 64 MiB


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
    and width; features: (n, D), the connector's output at the n image tokens, or None where
    `vision`, what the vision tower takes, goes through the tower in every pass.
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

    ids (R, N); positions (K, R, N); group, branch (R, N): which group and which of its captions a
    position belongs to; where (M,): flat index of the position that predicts the m-th caption
    token, captions one behind the other; prompts: index of the prompts in the order of the rows.
    """

    ids: Tensor
    positions: Tensor
    group: Tensor
    branch: Tensor
    where: Tensor
    prompts: list[int]

    def to(self, device: torch.device) -> Layout:
        """The same on a device."""
        names = ("ids", "positions", "group", "branch", "where")
        moved = {n: getattr(self, n).to(device, non_blocking=True) for n in names}
        return Layout(prompts=self.prompts, **moved)


def inner(model: Any) -> Any:
    """The model of transformers inside DDP and PEFT."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def layout(
    prompts: Sequence[Prompt],
    of: Sequence[int],
    captions: Sequence[Sequence[int]],
    align: int = ALIGN,
) -> Layout:
    """Lay out captions (token ids) behind their prompts: `of[i]` is the prompt of caption i.

    The length of the rows is a multiple of `align`.
    """
    members: dict[int, list[int]] = {}
    for i, which in enumerate(of):
        members.setdefault(which, []).append(i)
    bodies = {which: len(prompts[which].ids) - 1 for which in members}
    sizes = {w: bodies[w] + sum(len(captions[i]) for i in members[w]) for w in members}
    rows = _fill(sizes)
    length = -(-max(sum(sizes[w] for w in row) for row in rows) // align) * align
    kinds = prompts[0].positions.shape[0]
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    positions = torch.zeros(kinds, len(rows), length, dtype=torch.long)
    group = torch.full((len(rows), length), PADDING)
    branch = torch.full((len(rows), length), PADDING)
    begins = [0] * len(captions)
    for r, row in enumerate(rows):
        at = 0
        for which in row:
            prompt, body = prompts[which], bodies[which]
            group[r, at : at + sizes[which]] = which
            branch[r, at : at + body] = PROMPT
            ids[r, at : at + body] = prompt.ids[:-1]
            positions[:, r, at : at + body] = prompt.positions[:, :-1]
            at += body
            last, first = int(prompt.ids[-1]), prompt.next_position
            for k, i in enumerate(members[which], 1):
                if size := len(captions[i]):
                    ids[r, at : at + size] = torch.tensor([last, *captions[i][:-1]])
                    positions[:, r, at] = prompt.positions[:, -1]
                    positions[:, r, at + 1 : at + size] = torch.arange(first, first + size - 1)
                    branch[r, at : at + size] = k
                    begins[i] = r * length + at
                    at += size
    where = [torch.arange(b, b + len(c)) for b, c in zip(begins, captions, strict=True)]
    return Layout(ids, positions, group, branch, torch.cat(where), [w for row in rows for w in row])


def _fill(sizes: dict[int, int]) -> list[list[int]]:
    """Rows of groups, no row longer than the longest group: first fit, the longest first."""
    limit, room = max(sizes.values()), list[int]()  # room: what is left of each row
    rows: list[list[int]] = []
    for which in sorted(sizes, key=lambda w: (-sizes[w], w)):
        fits = next((r for r, left in enumerate(room) if left >= sizes[which]), None)
        if fits is None:
            rows.append([which])
            room.append(limit - sizes[which])
        else:
            rows[fits].append(which)
            room[fits] -= sizes[which]
    return rows


def image_inputs(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What the model's forward takes for the images of these prompts, each once, in this order."""
    known = [prompt.features for prompt in prompts]
    if all(features is not None for features in known):
        return {"mm_encoder_outputs": {"image": types.SimpleNamespace(pooler_output=known)}}
    return join([prompt.vision for prompt in prompts])


def join(vision: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What the tower takes, of several images, in one.

    Tiles (1, tiles, …) are filled up with zeros to the same number: the model leaves those out.
    """
    most = max(v["pixel_values"].shape[1] for v in vision)

    def fill(x: Tensor) -> Tensor:
        if x.shape[1] == most or x.ndim < 4:
            return x
        return torch.cat([x, x.new_zeros(1, most - x.shape[1], *x.shape[2:])], 1)

    return {key: torch.cat([fill(v[key]) for v in vision]) for key in vision[0]}


class Targets(NamedTuple):
    """What `add_caption_head` is asked for: flat positions (M,) and the tokens (M,) after them."""

    where: Tensor
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
        hidden = states.flatten(0, 1)[captions.where]
        head = self.get_output_embeddings()
        return *log_probs(hidden, head, captions.tokens, temperature), hidden

    model.forward = types.MethodType(forward, model)


def log_probs(
    hidden: Tensor, head: nn.Linear, tokens: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """(M,) log p(tokens) and (M,) entropies of softmax(head(hidden) / temperature), float32.

    hidden (M, D), tokens (M,). More than LOGITS_AT_ONCE logits are never held: they are computed
    in chunks, again in the backward pass.
    """

    def some(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        every = torch.log_softmax(head(hidden).float() / temperature, dim=-1)
        return every.gather(-1, tokens[:, None])[:, 0], -(every.exp() * every).sum(-1)

    size = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    if len(tokens) <= size:
        return some(hidden, tokens)
    parts = [
        checkpoint(some, h, t, use_reentrant=False)
        for h, t in zip(hidden.split(size), tokens.split(size), strict=True)
    ]
    logps, entropies = zip(*parts, strict=True)
    return torch.cat(logps), torch.cat(entropies)


def caption_forward(
    model: Any,
    prompts: Sequence[Prompt],
    of: Sequence[int],
    completion_ids: Tensor,
    completion_mask: Tensor,
) -> CaptionForward:
    """Log-probs, entropies and hidden states of captions (B, T), packed behind their prompts.

    `of[i]` is the index in `prompts` of caption i. `model` may be wrapped; `add_caption_head` was
    called on the model inside. A caption's mask is ones, then zeros; one that is masked whole
    takes no part.
    """
    device = completion_ids.device
    lengths = completion_mask.sum(1).tolist()
    told = completion_ids.tolist()
    captions = [ids[:n] for ids, n in zip(told, lengths, strict=True)]
    blocks = by_blocks(inner(model))
    made = layout(prompts, of, captions, BLOCK if blocks else ALIGN).to(device)
    seen = (block_mask if blocks else mask)(made.group, made.branch)
    present = completion_mask.bool()
    output = model(
        input_ids=made.ids,
        **model_inputs(made.positions, seen),
        **image_inputs([prompts[i] for i in made.prompts]),
        captions=Targets(made.where, completion_ids[present]),
    )

    def spread(x: Tensor) -> Tensor:
        return x.new_zeros(*present.shape, *x.shape[1:]).index_put((present,), x)

    return CaptionForward(*(spread(x) for x in output))
