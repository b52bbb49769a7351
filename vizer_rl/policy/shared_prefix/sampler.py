"""Sampler: every prompt is prefilled once, its captions are decoded side by side behind it.

The key-value cache of a prompt is never copied per caption. A decoding step feeds one token of each
unfinished caption to the row of its prompt, where a mask keeps captions apart: attention reads a
prompt's keys and values once for all of them. What can be set about sampling is prepared by the
public `generate`, which calls the loop below in place of its own. On CUDA the shapes of a step are
static and it is replayed as a graph (cuda_graph.py): at a token per caption, a step that is
launched kernel by kernel waits for the host most of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from ..lora import merged
from ..vision import image_inputs
from .attention import ALIGN, PADDING, PROMPT, attention_mask, model_inputs
from .cuda_graph import MIN_TOKENS, CudaGraph
from .kv_cache import static_kv_cache
from .packing import Prompt, unwrapped

DROP_ROWS = 0.25  # share of rows that are done: from here on moving the cache pays


class Sampled(NamedTuple):
    """Captions in the order of `prompt_idx`.

    ids: token ids, with EOS where a caption came to it; logps: log p of each token in nats, of the
    whole distribution at the sampling temperature, as the loss takes it.
    """

    ids: list[list[int]]
    logps: list[list[float]]


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[Prompt],
    prompt_idx: Sequence[int],
    *,
    synced: bool = False,
    static_shapes: bool = False,
    **generation: Any,
) -> Sampled:
    """A caption for each of `prompt_idx`; `generation`: arguments of `model.generate`.

    synced: go on until all devices are done, as weights spread over them need it; static_shapes: of
    every step, on CUDA as a graph, where captions may be long enough for it to pay.
    """
    width = max(len(prompt.ids) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    present = torch.zeros_like(ids)
    for r, prompt in enumerate(prompts):  # on the left, as penalties for repetition expect it
        ids[r, width - len(prompt.ids) :] = prompt.ids
        present[r, width - len(prompt.ids) :] = 1

    def loop(model: Any, input_ids: Tensor, **prepared: Any) -> Sampled:
        config = prepared["generation_config"]
        max_new_tokens = config.max_length - input_ids.shape[1]
        static = static_shapes and max_new_tokens >= MIN_TOKENS
        state = DecodeState(model, prompts, prompt_idx, input_ids, max_new_tokens, static)
        processor, stopping = prepared["logits_processor"], prepared["stopping_criteria"]
        return state.finish(processor, stopping, config, synced)

    with nullcontext() if synced else merged(model):
        return model.generate(
            input_ids=ids[list(prompt_idx)].to(model.device),
            attention_mask=present[list(prompt_idx)].to(model.device),
            custom_generate=loop,
            **generation,
        )


class DecodeState:
    """B captions being decoded behind R prompts.

    token_ids (B, P + t): of prompt and caption so far; active: the unfinished captions of each
    prompt; branch: of each caption in its group, from 1; column_branch (R, C): PROMPT, PADDING or
    the branch that a column of the cache belongs to, `filled` of them are in use; positions,
    next_positions (K, R, 1): of the token to be fed, of the one after it. Each step takes up
    `slots` columns.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        prompt_idx: Sequence[int],
        token_ids: Tensor,
        max_new_tokens: int,
        static_shapes: bool,
    ) -> None:
        self.model, self.token_ids, self.device = model, token_ids, token_ids.device
        self.active: list[list[int]] = [[] for _ in prompts]
        for b, r in enumerate(prompt_idx):
            self.active[r].append(b)
        self.branch = {b: k for row in self.active for k, b in enumerate(row, 1)}
        last = [p.positions[:, -1:] for p in prompts]
        after = [p.positions.new_full((len(p.positions), 1), p.next_position) for p in prompts]
        self.positions = torch.stack(last, 1).to(self.device)
        self.next_positions = torch.stack(after, 1).to(self.device)
        self.slots = max(len(row) for row in self.active)
        self.filled = max(len(prompt.ids) for prompt in prompts) - 1
        columns = self.filled + max_new_tokens * self.slots
        columns += -columns % ALIGN if static_shapes else 0
        self.cache = static_kv_cache(model, columns)
        self.column_branch = token_ids.new_full((len(prompts), columns), PADDING)
        self.column_branch[:, : self.filled] = self._prefill(prompts)
        self.graph = CudaGraph() if static_shapes else None

    def _prefill(self, prompts: Sequence[Prompt]) -> Tensor:
        """Fill the cache with the prompts but their last tokens; returns their branches (R, P)."""
        shape = (len(prompts), self.filled)
        ids, branch = torch.zeros(shape, dtype=torch.long), torch.full(shape, PADDING)
        positions = torch.zeros(len(prompts[0].positions), *shape, dtype=torch.long)
        for r, prompt in enumerate(prompts):
            body = len(prompt.ids) - 1
            ids[r, :body], branch[r, :body] = prompt.ids[:-1], PROMPT
            positions[:, r, :body] = prompt.positions[:, :-1]
        branch = branch.to(self.device)
        self.model(
            input_ids=ids.to(self.device),
            **model_inputs(positions.to(self.device), attention_mask(branch, branch)),
            **image_inputs(unwrapped(self.model), prompts),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return branch

    def finish(self, processor: Any, stopping: Any, config: Any, synced: bool) -> Sampled:
        """Decode every caption to its end."""
        start, total = self.token_ids.shape[1], self.token_ids.shape[0]
        lengths, logps = [0] * total, self.token_ids.new_zeros(total, 0, dtype=torch.float32)
        temperature = config.temperature or 1.0 if config.do_sample else 1.0
        while True:
            logits = self._step()
            active = [b for row in self.active for b in row]
            if active:
                index = torch.tensor(active, device=self.device)
                full = logits.new_zeros(total, logits.shape[-1]).index_copy(0, index, logits)
                # on all rows: a processor may keep a state of the rows that it began with
                scores = processor(self.token_ids, full)[index]
                if config.do_sample:
                    tokens = torch.multinomial(scores.softmax(-1), 1)
                else:
                    tokens = scores.argmax(-1, keepdim=True)
                logp = (logits / temperature).log_softmax(-1).gather(-1, tokens)
                self.token_ids = _append(self.token_ids, index, tokens)
                logps = _append(logps, index, logp)
                ended = stopping(self.token_ids[index], None).tolist()
                done = {b for b, end in zip(active, ended, strict=True) if end}
                for b in active:
                    lengths[b] += 1
                self.active = [[b for b in row if b not in done] for row in self.active]
            if not self._any_active(synced):
                break
            self._drop_rows()
        ids = self.token_ids[:, start:].tolist()
        return Sampled(
            [row[:n] for row, n in zip(ids, lengths, strict=True)],
            [row[:n] for row, n in zip(logps.tolist(), lengths, strict=True)],
        )

    def _step(self) -> Tensor:
        """Feed each active caption's last token; (active, V) float32 logits of the next."""
        slots = self.slots if self.graph else max(1, max(len(row) for row in self.active))
        pairs = [(row, slots - len(row)) for row in self.active]
        rows = [row + [0] * n for row, n in pairs]
        tokens = self.token_ids[torch.tensor(rows, device=self.device), -1]
        rows = [[self.branch[b] for b in row] + [PADDING] * n for row, n in pairs]
        branch = torch.tensor(rows, device=self.device)
        begin, self.filled = self.filled, self.filled + slots
        self.column_branch[:, begin : self.filled] = branch
        columns = self.column_branch if self.graph else self.column_branch[:, : self.filled]
        columns = columns[:, None, :]
        mask = ((columns == branch[:, :, None]) | (columns == PROMPT))[:, None]
        inputs = tokens, self.positions.expand(-1, -1, slots), mask
        if self.graph:
            write_columns = torch.arange(begin, self.filled, device=self.device)
            logits = self.graph(self._feed, *inputs, write_columns)
        else:
            logits = self._feed(*inputs)
        self.positions, self.next_positions = self.next_positions, self.next_positions + 1
        return logits[branch != PADDING].float()

    def _feed(
        self, tokens: Tensor, positions: Tensor, mask: Tensor, write_columns: Tensor | None = None
    ) -> Tensor:
        """(R, slots, V) logits after tokens (R, slots); cached in `write_columns`."""
        self.cache.write_to(write_columns)
        output = self.model(
            input_ids=tokens,
            **model_inputs(positions, mask),
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.logits

    def _any_active(self, synced: bool) -> bool:
        """Whether a caption is unfinished: here or, with weights in parts, on any device."""
        here = any(self.active)
        if not synced:
            return here
        flag = torch.tensor(float(here), device=self.device)
        torch.distributed.all_reduce(flag)
        return bool(flag)

    def _drop_rows(self) -> None:
        """Leave prompts behind whose captions are all done, once they are many."""
        if self.graph:
            return
        keep = [r for r, row in enumerate(self.active) if row] or [0]
        if len(self.active) - len(keep) < max(1, DROP_ROWS * len(self.active)):
            return
        rows = torch.tensor(keep, device=self.device)
        self.active = [self.active[r] for r in keep]
        self.column_branch = self.column_branch[rows]
        self.positions = self.positions[:, rows]
        self.next_positions = self.next_positions[:, rows]
        self.cache.batch_select_indices(rows)


def _append(x: Tensor, index: Tensor, column: Tensor) -> Tensor:
    """x (B, t) with one more column, 0 in the rows that `index` does not name."""
    return torch.cat([x, x.new_zeros(len(x), 1).index_copy(0, index, column)], 1)
