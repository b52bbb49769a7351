"""What is read of words: which tokens at which positions of a completion, and what comes of it.

Pure functions of token ids and numbers; `word_certainty` has the passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from rewards.lib.images import Picked

Key = tuple[int, int, int]  # of a word: its caption, the group in it, the word in that


class Words(NamedTuple):
    """Token ids of a word and its alternatives, from the caption's token `start` on."""

    ids: list[list[int]]
    start: int


def together(
    own: list[list[int]],
    words: list[list[Words]],
    images: Sequence[Image],
    keys: list[Key],
    whole: bool = True,
) -> tuple[list[list[int]], list[list[Words]], Sequence[Image]]:
    """Completions, groups and images: the captions, where `whole`, then each word alone."""
    singles = [Words([words[r][c].ids[k]], words[r][c].start) for r, c, k in keys]
    rows = [*(range(len(own)) if whole else ()), *(row for row, _, _ in keys)]
    tails = [own[r][: w.start] + w.ids[0] for (r, _, _), w in zip(keys, singles, strict=True)]
    begin = (own, words) if whole else ([], [])
    return [*begin[0], *tails], [*begin[1], *([w] for w in singles)], Picked(images, rows)


class Span(NamedTuple):
    """What is read of a word: its `tokens` at `positions` of a completion, from the first on.

    whole: no other reading is needed; ends: the completion has all of it, and its last position
    is the one behind.
    """

    positions: list[int]
    tokens: list[int]
    whole: bool
    ends: bool


def spans(ids: list[int], row: list[Words], exact: bool) -> list[Span]:
    """Of the words of all groups, one behind the other, as far as `ids` has the tokens before."""
    result = list[Span]()
    for group in row:
        start, own = group.start, ids[group.start :]
        for word in group.ids:
            if word[:1] != own[:1]:  # the common case
                result.append(Span([start], word[:1], not exact and len(word) == 1, False))
                continue
            pairs = zip(word, own, strict=False)
            common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            has_all = common == len(word)
            count = common if has_all else common + 1
            whole = has_all or (not exact and count == len(word))
            positions = list(range(start, start + count + has_all))
            result.append(Span(positions, word[:count], whole, has_all))
    return result


def grouped(
    row: list[Words], read: list[Span], logps: Iterator[float], after: Iterator[float]
) -> list[list[tuple[float, bool]]]:
    """Per group and word log p of what is read of it, and whether that is the whole word."""
    own = iter(read)
    return [
        [
            (sum(next(logps) for _ in s.tokens) + (next(after) if s.ends else 0.0), s.whole)
            for s in (next(own) for _ in group.ids)
        ]
        for group in row
    ]


def normalised(rows: list[list[list[float]]]) -> list[list[Tensor]]:
    """Per row and group the softmax of its log-probs."""
    groups = [group for row in rows for group in row]
    width = max(map(len, groups), default=0)
    padded = torch.tensor([[*group, *[-math.inf] * (width - len(group))] for group in groups])
    probabilities = padded.softmax(1) if groups else ()
    own = iter(p[: len(group)] for p, group in zip(probabilities, groups, strict=True))
    return [[next(own) for _ in row] for row in rows]
