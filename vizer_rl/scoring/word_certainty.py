"""Certainty of words: the reference policy's probability of a word among those of its class.

    c(w) = p(w | image, caption so far) / sum over the class of p(v | image, caption so far)

The probability of a word is that of its tokens, and of the next token not going on with it: "cat"
is not "caterpillar". Alternatives are read in the caption's own pass up to the first token that
the caption has not. What that does not tell is read in a pass of its own, but for words that cannot
reach NEGLIGIBLE times the likeliest of their class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image
from torch import Tensor

from rewards.lib.word_classes import Place

from ..policy.shared_prefix.packing import MAX_LOGITS
from .word_spans import Key, Words, grouped, normalised, spans, together

if TYPE_CHECKING:
    from .reference_policy import ReferencePolicy

NEGLIGIBLE = 1e-3  # of a class's likeliest word: what a word's first tokens must reach
ANCHOR = "x"  # a word before a word
REMEMBERED = 100_000  # places whose token ids are


class WordCertainty:
    """Reads how sure the reference policy is of words that have alternatives.

    A caption's tokens are those of its words, one behind the other: no token spans a space.
    """

    def __init__(self, policy: ReferencePolicy, exact: bool = True) -> None:
        """exact: whether a pass is worth it to see that an alternative of one token ends there."""
        self.exact = exact
        self.policy, self.head = policy, policy.model.get_output_embeddings()
        self.going_on = going_on(policy.processor.tokenizer)
        self._goes_on = torch.zeros(self.head.weight.shape[0], 1)
        self._goes_on[self.going_on] = 1.0
        self._anchor = policy.token_ids(ANCHOR)
        self._first: dict[str, list[int]] = {}  # token ids of a caption's first word
        self._later: dict[str, list[int]] = {}  # of another, with the space before it
        self._places: dict[tuple[str, ...], Words] = {}  # by their prefixes

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
        if not any(places):
            return [[] for _ in captions]
        own = [self.token_ids(caption) for caption in captions]
        words = [[self._words(place) for place in row] for row in places]
        with self.policy.as_before_training():
            ahead = self._ahead(own, words, images, view)
            both = self._read(*together(own, words, images, ahead), view)
            result, read = both[: len(own)], dict(zip(ahead, both[len(own) :], strict=True))
            again = [
                (row, column, k)
                for row, groups in enumerate(result)
                for column, group in enumerate(groups)
                for k in _unread(group)
            ]
            rest = [key for key in again if key not in read]
            later = self._read(*together(own, words, images, rest, whole=False), view)
        read |= zip(rest, later, strict=True)
        for row, column, k in again:
            ((result[row][column][k],),) = read[row, column, k]
        return normalised([[[p for p, _ in group] for group in row] for row in result])

    def _ahead(
        self,
        own: list[list[int]],
        words: list[list[Words]],
        images: Sequence[Image],
        view: str,
    ) -> list[Key]:
        """Words that the captions' own pass may as well read whole, at a position or two each.

        Only where captions share prefixes in a pass, which a second one would have to read again.
        """
        if self.exact or not self.policy.shares_prefixes(view):
            return []
        offered = self.policy.offered.has(images, own)
        return [
            (row, column, k)
            for row, (ids, groups) in enumerate(zip(own, words, strict=True))
            if not offered[row]
            for column, group in enumerate(groups)
            for k, word in enumerate(group.ids)
            if ids[group.start : group.start + len(word) - 1] != word[:-1]
        ]

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

    def _words(self, place: Place) -> Words:
        if place.prefixes in self._places:
            return self._places[place.prefixes]
        if len(self._places) > REMEMBERED:
            self._places.clear()
        split = [prefix.split() for prefix in place.prefixes]
        ends = zip(min(split), max(split), strict=False)  # what these share, all do
        count = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ends))
        start = sum(len(self._word(k, word)) for k, word in enumerate(split[0][:count]))
        tails = [
            [t for k, word in enumerate(words[count:], count) for t in self._word(k, word)]
            for words in split
        ]
        self._places[place.prefixes] = Words(tails, start)
        return self._places[place.prefixes]

    def _read(
        self,
        completions: list[list[int]],
        words: list[list[Words]],
        images: Sequence[Image],
        view: str,
    ) -> list[list[list[tuple[float, bool]]]]:
        """Per completion and group log p of each word, as far as the completion has its tokens
        before, and if that is all. Only positions that a word needs meet the head."""
        if not completions:
            return []
        pairs = zip(completions, words, strict=True)
        read_N = [spans(ids, row, self.exact) for ids, row in pairs]
        hidden = self.policy.read_states(completions, images, view, lambda states, _: states, True)
        begin, chosen = 0, list[int]()
        places = list[dict[int, int]]()
        for ids, row in zip(completions, read_N, strict=True):
            needed = sorted({t for s in row for t in s.positions})
            places.append({t: len(chosen) + k for k, t in enumerate(needed)})
            chosen += [begin + t for t in needed]
            begin += len(ids) + 1
        reads = [
            (index[t], token)
            for index, row in zip(places, read_N, strict=True)
            for s in row
            for t, token in zip(s.positions, s.tokens, strict=False)
        ]
        ends = [
            index[s.positions[-1]]
            for index, row in zip(places, read_N, strict=True)
            for s in row
            if s.ends
        ]
        logps, after = self._logits(torch.cat(hidden)[chosen], reads, ends)
        return [grouped(row, own, logps, after) for row, own in zip(words, read_N, strict=True)]

    def _logits(
        self, hidden: Tensor, reads: list[tuple[int, int]], ends: list[int]
    ) -> tuple[Iterator[float], Iterator[float]]:
        """log p of (row of hidden, token), and at the rows `ends` of going on with no word."""
        size = max(1, MAX_LOGITS // self.head.weight.shape[0])
        values, after = torch.zeros(len(reads)), torch.zeros(len(hidden))
        positions, tokens = torch.tensor(reads, dtype=torch.long).view(-1, 2).T
        last = torch.tensor(ends, dtype=torch.long)
        for start in range(0, len(hidden), size):
            logits = self.head(hidden[start : start + size]).float()
            total = logits.logsumexp(-1, keepdim=True)
            within = (positions >= start) & (positions < start + size)
            row, token = (x.to(logits.device) for x in (positions[within] - start, tokens[within]))
            values[within] = (logits[row, token] - total[row, 0]).cpu()
            own = last[(last >= start) & (last < start + size)].unique()
            row = (own - start).to(logits.device)
            more = (logits[row] - total[row]).exp() @ self._goes_on.to(logits)
            after[own] = (1 - more[:, 0]).clamp(min=1e-9).log().cpu()
        return iter(values.tolist()), iter(after[last].tolist())


def _unread(group: list[tuple[float, bool]]) -> list[int]:
    """Indices of the words of a class that are not whole and may matter beside one that is."""
    best = max((logp for logp, whole in group if whole), default=-math.inf)
    floor = best + math.log(NEGLIGIBLE)
    return [k for k, (logp, whole) in enumerate(group) if not whole and logp >= floor]


def going_on(tokenizer: Any) -> Tensor:
    """(tokens,) ids of the tokens that go on with the word before them: a letter, no space."""
    anchor = tokenizer(ANCHOR, add_special_tokens=False)["input_ids"]
    texts = tokenizer.batch_decode([[*anchor, token] for token in range(len(tokenizer))])
    start = len(tokenizer.decode(anchor))
    special = set(tokenizer.all_special_ids)
    return torch.tensor(
        [k for k, t in enumerate(texts) if k not in special and t[start : start + 1].isalnum()]
    )
