"""Certainty of words: the reference policy's probability of a word among those of its class.

    c(w) = p(w | image, caption so far) / sum over the class of p(v | image, caption so far)

The probability of a word is that of its tokens, and of the next token not going on with it: "cat"
is not "caterpillar". Alternatives are read in the caption's own pass up to the first token that
the caption has not. What that does not tell is read in a pass of its own, but for words that cannot
reach NEGLIGIBLE times the likeliest of their class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from rewards.lib.images import Picked
from rewards.lib.word_classes import Place

if TYPE_CHECKING:
    from .reference_policy import ReferencePolicy

NEGLIGIBLE = 1e-3  # of a class's likeliest word: what a word's first tokens must reach
ANCHOR = "x"  # a word before a word


class _Words(NamedTuple):
    """Token ids of a word and its alternatives, from the caption's token `start` on."""

    ids: list[list[int]]
    start: int


class WordCertainty:
    """Reads how sure the reference policy is of words that have alternatives.

    A caption's tokens are those of its words, one behind the other: no token spans a space.
    """

    def __init__(self, policy: ReferencePolicy, exact: bool = True) -> None:
        """exact: whether a pass is worth it to see that an alternative of one token ends there."""
        self.exact = exact
        self.policy, self.head = policy, policy.model.get_output_embeddings()
        self.going_on = going_on(policy.processor.tokenizer)
        self._anchor = policy.token_ids(ANCHOR)
        self._first: dict[str, list[int]] = {}  # token ids of a caption's first word
        self._later: dict[str, list[int]] = {}  # of another, with the space before it

    def __call__(
        self,
        captions: Sequence[str],
        places: Sequence[Sequence[Place]],
        images: Sequence[Image],
        view: str = "image",
    ) -> list[list[Tensor]]:
        """Per caption and place (1 + A,): probability of the word, of its alternatives; sum 1.

        The caption is read with single spaces between its words; view: as of `log_probs`.
        """
        own = [self.token_ids(caption) for caption in captions]
        words = [[self._words(place) for place in row] for row in places]
        result = self._read(own, words, images, view)
        again = [
            (row, column, k)
            for row, groups in enumerate(result)
            for column, group in enumerate(groups)
            for k in _unread(group)
        ]
        single = [_Words([words[r][c].ids[k]], words[r][c].start) for r, c, k in again]
        rest = self._read(
            [own[r][: w.start] + w.ids[0] for (r, _, _), w in zip(again, single, strict=True)],
            [[group] for group in single],
            Picked(images, [row for row, _, _ in again]),
            view,
        )
        for (row, column, k), ((value,),) in zip(again, rest, strict=True):
            result[row][column][k] = value
        return [[torch.tensor([p for p, _ in g]).softmax(0) for g in groups] for groups in result]

    def token_ids(self, caption: str) -> list[int]:
        """A caption's token ids, word by word."""
        words = enumerate(caption.split())
        return [token for index, word in words for token in self._word(index, word)]

    def _word(self, index: int, word: str) -> list[int]:
        """Token ids of a caption's word, the space before it included."""
        cache = self._later if index else self._first
        if word not in cache:
            text = f"{ANCHOR} {word}" if index else word
            ids = self.policy.token_ids(text)
            if index and ids[: len(self._anchor)] != self._anchor:
                raise ValueError(f"the tokenizer has a token across a space, in {text!r}")
            cache[word] = ids[len(self._anchor) :] if index else ids
        return cache[word]

    def _words(self, place: Place) -> _Words:
        split = [prefix.split() for prefix in place.prefixes]
        shared = takewhile(lambda column: len(set(column)) == 1, zip(*split, strict=False))
        count = sum(1 for _ in shared)
        start = sum(len(self._word(k, word)) for k, word in enumerate(split[0][:count]))
        tails = [
            [t for k, word in enumerate(words[count:], count) for t in self._word(k, word)]
            for words in split
        ]
        return _Words(tails, start)

    def _read(
        self,
        completions: list[list[int]],
        words: list[list[_Words]],
        images: Sequence[Image],
        view: str,
    ) -> list[list[list[tuple[float, bool]]]]:
        """Per completion and group what `_log_probs` reads in the completion's pass."""
        groups = iter(words)

        def read(hidden: Tensor, ids: list[int]) -> list[list[tuple[float, bool]]]:
            row = next(groups)
            if not row:
                return []
            logps = self.head(hidden).float().log_softmax(-1)
            ends = (1 - logps.exp()[:, self.going_on].sum(-1)).clamp(min=1e-9).log().tolist()
            return _log_probs(logps, ends, ids, row, self.exact)

        if not completions:
            return []
        return self.policy.read_states(completions, images, view, read, True)


def _unread(group: list[tuple[float, bool]]) -> list[int]:
    """Indices of the words of a class that are not whole and may matter beside one that is."""
    best = max((logp for logp, whole in group if whole), default=-math.inf)
    floor = best + math.log(NEGLIGIBLE)
    return [k for k, (logp, whole) in enumerate(group) if not whole and logp >= floor]


def _log_probs(
    logps: Tensor, ends: list[float], ids: list[int], row: list[_Words], exact: bool
) -> list[list[tuple[float, bool]]]:
    """Per group and word log p of its tokens, as far as `ids` has those before, and if that is all.

    logps: (T + 1, V) before each of the T ids and behind them; ends: T + 1 times log p that the
    next token goes on with no word, counted where `ids` has the whole word.
    """
    wanted, spans = list[tuple[int, int]](), list[list[tuple[int, int, bool, float]]]()
    for group in row:
        spans.append([])
        for word in group.ids:
            t, begin = group.start, len(wanted)
            for token in word:
                wanted.append((t, token))
                if ids[t : t + 1] != [token]:
                    break
                t += 1
            has_all = t == group.start + len(word)
            whole = has_all or (not exact and len(wanted) - begin == len(word))
            spans[-1].append((begin, len(wanted), whole, ends[t] if has_all else 0.0))
    positions, tokens = zip(*wanted, strict=True)
    values = logps[list(positions), list(tokens)].tolist()
    return [
        [(sum(values[begin:end]) + after, whole) for begin, end, whole, after in group]
        for group in spans
    ]


def going_on(tokenizer: Any) -> Tensor:
    """(tokens,) ids of the tokens that go on with the word before them: a letter, no space."""
    anchor = tokenizer(ANCHOR, add_special_tokens=False)["input_ids"]
    texts = tokenizer.batch_decode([[*anchor, token] for token in range(len(tokenizer))])
    start = len(tokenizer.decode(anchor))
    special = set(tokenizer.all_special_ids)
    return torch.tensor(
        [k for k, t in enumerate(texts) if k not in special and t[start : start + 1].isalnum()]
    )
