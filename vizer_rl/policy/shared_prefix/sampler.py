"""Samples captions: every prompt prefilled once, its captions continued side by side behind it.

The key-value cache of a prompt is never copied per caption. A decoding step feeds one token of each
caption still going to the row of its prompt, where a mask keeps captions apart: attention reads a
prompt's keys and values once for all of them. What can be set about sampling is prepared by the
public `generate`, which calls the loop below in place of its own. On CUDA the shapes of a step are
fixed and it is replayed as a graph (decoding.py): at a token per caption, a step that is launched
kernel by kernel waits for the host most of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from ..lora import merged
from .attention import ALIGN, PADDING, PROMPT, mask, model_inputs
from .cuda_graph import WORTH, CudaGraph
from .kv_cache import static_kv_cache
from .packing import Prompt, image_inputs

DROP_ROWS = 0.25  # of the rows done with: from here on moving the cache pays


class Sampled(NamedTuple):
    """Captions in the order asked for.

    ids: token ids, with EOS where a caption came to it; logps: log p of each token in nats, of the
    whole distribution at the sampling temperature, as the loss takes it.
    """

    ids: list[list[int]]
    logps: list[list[float]]


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[Prompt],
    of: Sequence[int],
    *,
    synced: bool = False,
    fixed: bool = False,
    **generation: Any,
) -> Sampled:
    """A caption for each of `of`, indices of prompts. `generation`: arguments of `model.generate`.

    synced: go on until all devices are done, as weights spread over them need it; fixed: steps of
    fixed shapes, on CUDA as a graph where captions may be long enough for it to pay.
    """
    width = max(len(prompt.ids) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    present = torch.zeros_like(ids)
    for r, prompt in enumerate(prompts):  # on the left, as penalties for repetition expect it
        ids[r, width - len(prompt.ids) :] = prompt.ids
        present[r, width - len(prompt.ids) :] = 1

    def loop(model: Any, input_ids: Tensor, **prepared: Any) -> Sampled:
        config = prepared["generation_config"]
        longest = config.max_length - input_ids.shape[1]
        going = DecodeState(model, prompts, of, input_ids, longest, fixed and longest >= WORTH)
        processor, stopping = prepared["logits_processor"], prepared["stopping_criteria"]
        return going.finish(processor, stopping, config, synced)

    with nullcontext() if synced else merged(model):
        return model.generate(
            input_ids=ids[list(of)].to(model.device),
            attention_mask=present[list(of)].to(model.device),
            custom_generate=loop,
            **generation,
        )


class DecodeState:
    """Captions on their way; `alive` are those to go on, by the row of their prompt.

    told (B, P + t): prompt and caption tokens so far; columns (R, C): PROMPT, PADDING or 1 + the
    caption (in its group) that a column of the cache belongs to, `filled` of them; positions, after
    (K, R, 1): of the token to be fed, of the one after it. No caption gets more than `longest`
    tokens.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        of: Sequence[int],
        told: Tensor,
        longest: int,
        fixed: bool,
    ) -> None:
        self.model, self.told, self.device = model, told, told.device
        self.alive: list[list[int]] = [[] for _ in prompts]
        for b, r in enumerate(of):
            self.alive[r].append(b)
        self.branch = {b: k for row in self.alive for k, b in enumerate(row, 1)}
        last = [p.positions[:, -1:] for p in prompts]
        after = [p.positions.new_full((len(p.positions), 1), p.next_position) for p in prompts]
        self.positions = torch.stack(last, 1).to(self.device)
        self.after = torch.stack(after, 1).to(self.device)
        self.slots = max(len(row) for row in self.alive)
        self.filled = max(len(prompt.ids) for prompt in prompts) - 1
        room = self.filled + longest * self.slots
        room += -room % ALIGN if fixed else 0
        self.cache = static_kv_cache(model, room)
        self.columns = self.told.new_full((len(prompts), room), PADDING)
        self.columns[:, : self.filled] = self._prefill(prompts)
        self.fixed = CudaGraph() if fixed else None

    def _prefill(self, prompts: Sequence[Prompt]) -> Tensor:
        """Fill the cache with the prompts but their last tokens; returns these columns."""
        shape = (len(prompts), self.filled)
        ids, columns = torch.zeros(shape, dtype=torch.long), torch.full(shape, PADDING)
        positions = torch.zeros(len(prompts[0].positions), *shape, dtype=torch.long)
        for r, prompt in enumerate(prompts):
            body = len(prompt.ids) - 1
            ids[r, :body], columns[r, :body] = prompt.ids[:-1], PROMPT
            positions[:, r, :body] = prompt.positions[:, :-1]
        columns = columns.to(self.device)
        self.model(
            input_ids=ids.to(self.device),
            **model_inputs(positions.to(self.device), mask(columns, columns)),
            **image_inputs(prompts),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return columns

    def finish(self, processor: Any, stopping: Any, config: Any, synced: bool) -> Sampled:
        """Continue every caption to its end."""
        start, total = self.told.shape[1], self.told.shape[0]
        lengths, logps = [0] * total, self.told.new_zeros(total, 0, dtype=torch.float32)
        heat = config.temperature or 1.0 if config.do_sample else 1.0
        while True:
            logits = self._step()
            going = [b for row in self.alive for b in row]
            if going:
                at = torch.tensor(going, device=self.device)
                every = logits.new_zeros(total, logits.shape[-1]).index_copy(0, at, logits)
                scores = processor(self.told, every)[at]  # some remember the rows they began with
                if config.do_sample:
                    chosen = torch.multinomial(scores.softmax(-1), 1)
                else:
                    chosen = scores.argmax(-1, keepdim=True)
                logp = (logits / heat).log_softmax(-1).gather(-1, chosen)
                self.told = _append(self.told, at, chosen)
                logps = _append(logps, at, logp)
                ended = stopping(self.told[at], None).tolist()
                over = {b for b, end in zip(going, ended, strict=True) if end}
                for b in going:
                    lengths[b] += 1
                self.alive = [[b for b in row if b not in over] for row in self.alive]
            if not self._anybody(synced):
                break
            self._drop_rows()
        told = zip(self.told[:, start:].tolist(), logps.tolist(), lengths, strict=True)
        cut = [(ids[:n], of[:n]) for ids, of, n in told]
        return Sampled([ids for ids, _ in cut], [of for _, of in cut])

    def _step(self) -> Tensor:
        """Feed each living caption's last token; (living, V) float32 logits of the next."""
        slots = self.slots if self.fixed else max(1, max(len(row) for row in self.alive))
        branch = [
            [self.branch[b] for b in row] + [PADDING] * (slots - len(row)) for row in self.alive
        ]
        branches = torch.tensor(branch, device=self.device)
        which = [row + [0] * (slots - len(row)) for row in self.alive]
        tokens = self.told[torch.tensor(which, device=self.device), -1]
        begin, self.filled = self.filled, self.filled + slots
        self.columns[:, begin : self.filled] = branches
        there = (self.columns if self.fixed else self.columns[:, : self.filled])[:, None, :]
        allowed = ((there == branches[:, :, None]) | (there == PROMPT))[:, None]
        told = tokens, self.positions.expand(-1, -1, slots), allowed
        if self.fixed:
            at = torch.arange(begin, self.filled, device=self.device)
            logits = self.fixed(self._feed, *told, at)
        else:
            logits = self._feed(*told)
        self.positions, self.after = self.after, self.after + 1
        return logits[branches != PADDING].float()

    def _feed(
        self, tokens: Tensor, positions: Tensor, allowed: Tensor, at: Tensor | None = None
    ) -> Tensor:
        """(R, slots, V) logits after tokens (R, slots); columns `at` get their keys and values."""
        for layer in self.cache.layers:
            layer.at = at
        output = self.model(
            input_ids=tokens,
            **model_inputs(positions, allowed),
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.logits

    def _anybody(self, synced: bool) -> bool:
        """Whether a caption is still going: here or, with weights in parts, on any device."""
        here = any(self.alive)
        if not synced:
            return here
        flag = torch.tensor(float(here), device=self.device)
        torch.distributed.all_reduce(flag)
        return bool(flag)

    def _drop_rows(self) -> None:
        """Leave prompts behind whose captions are all done, once they are many."""
        if self.fixed:
            return
        keep = [r for r, row in enumerate(self.alive) if row] or [0]
        if len(self.alive) - len(keep) < max(1, DROP_ROWS * len(self.alive)):
            return
        rows = torch.tensor(keep, device=self.device)
        self.alive = [self.alive[r] for r in keep]
        self.columns = self.columns[rows]
        self.positions, self.after = self.positions[:, rows], self.after[:, rows]
        self.cache.batch_select_indices(rows)


def _append(x: Tensor, at: Tensor, column: Tensor) -> Tensor:
    """x (B, t) with one more column, 0 where `at` does not point."""
    return torch.cat([x, x.new_zeros(len(x), 1).index_copy(0, at, column)], 1)
