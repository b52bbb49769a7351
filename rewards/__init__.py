"""The reward contract: the inputs of a reward, its scores, and the attributes it may declare.

A reward is one file `rewards/<name>.py` with one class whose parameters are typed keywords and
which maps a `CaptionBatch` to one float per caption, or None where it cannot judge. The file's name
is its key in a run file and its name in every log. A plain function of the batch works too, and so
does an async one. rewards/README.md has it all on one page, with an example.

What a class may declare, and what holds where it does not:

    range = (low, high)        lowest and highest score; (-inf, inf)
    reads = ("image", "text")  its inputs among "image", "text", "policy"; none declared
    groups = False             True: it can only score whole groups
    content = True             False for a guard of the language: the gate does not change it
    gates = False              True: no content reward judges a caption it scores below 0, which
                               ranks below all others of its group
    step                       differences below it are noise
    opening                    text with which captions are to begin, a trigger word: it is put in
                               front of completions; other rewards do not read it
    prepare(bank)              called before training, for instance to calibrate on the bank; may
                               return a sentence for the user: what it does otherwise than set
    save(folder)               called after prepare: write what was learnt to the run directory
    objection                  after prepare: why this reward cannot work here, for the audit
    parts(batch)               per caption the (sentence | phrase | claim | …, score) it is made of
    notes()                    metrics since the last call, logged as reward/<name>/<key>

and a module: a sentence "Cost: …" in its docstring; `check(reward, right, wrong)`, the share of
right captions that score higher than wrong ones, with `RATE`, the share it must reach on the
embedded scenes. Nothing here imports vizer_rl, and a `CaptionBatch` holds no label.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from PIL.Image import Image

from rewards.lib.lookup import cost, find, load_module, make, names, title
from rewards.lib.text import Missing, content_words, noun_phrases, sentences
from rewards.lib.word_classes import Place

__all__ = [
    "Bank",
    "CaptionBatch",
    "Encoder",
    "Missing",
    "Parts",
    "ReferencePolicy",
    "Scorer",
    "Scores",
    "content_words",
    "cost",
    "find",
    "load_module",
    "make",
    "names",
    "noun_phrases",
    "sentences",
    "title",
    "win_rate",
]

Scores = Sequence[float | None]
Parts = list[list[tuple[str, float]]]


class Encoder(Protocol):
    """A frozen image-text encoder (CLIP and its kin), shared by all rewards of a run."""

    name: str
    context_length: int  # tokens; what is beyond is cut off

    def image_features(self, ids: Sequence[str], images: Sequence[Image]) -> torch.Tensor:
        """(N, D) unit vectors; each id is encoded once."""

    def text_features(self, captions: Sequence[str]) -> torch.Tensor:
        """(N, D) unit vectors."""

    def too_long(self, captions: Sequence[str]) -> list[bool]:
        """Whether the end of each caption lies beyond the context."""


class ReferencePolicy(Protocol):
    """A read-only view of the reference policy: the model before training, its adapter off."""

    key: str  # changes when the weights do
    instruct: bool  # answers questions: instruction-tuned, with a chat template of its own

    def image_features(self, ids: Sequence[str], images: Sequence[Image]) -> torch.Tensor:
        """(N, D) mean output of its vision tower, before the connector."""

    def caption_states(
        self, captions: Sequence[str], images: Sequence[Image] | None = None, end: bool = True
    ) -> torch.Tensor:
        """(N, D) mean last hidden state over the caption's tokens and, with `end`, its end token.

        Read without the image or, where images are given, after image and prompt.
        """

    def log_probs(
        self, captions: Sequence[str], images: Sequence[Image] | None = None, view: str = "image"
    ) -> list[torch.Tensor]:
        """(T_i,) log-probability of each caption's tokens, without its end.

        view: "image" | "masked" (patches blanked) | "blank" (mean colour) | "text" (no image).
        """

    def tokens(self, caption: str) -> list[str]:
        """The text of each of those T_i tokens."""

    def token_ids(self, caption: str, image: bool = True) -> list[int]:
        """Their ids, as they follow the prompt with its image or without."""

    def word_probs(
        self,
        captions: Sequence[str],
        places: Sequence[Sequence[Place]],
        images: Sequence[Image],
        view: str = "image",
    ) -> list[list[torch.Tensor]]:
        """Per caption and place (1 + A,): the word's probability, its alternatives'; sum 1.

        The places are those of `rewards.lib.word_classes.places`.
        """

    def sample(self, images: Sequence[Image], count: int, seed: int) -> list[list[str]]:
        """`count` captions per image, sampled at temperature 1."""

    def yes(
        self, questions: Sequence[str], images: Sequence[Image], view: str = "image"
    ) -> torch.Tensor:
        """(N,) p(yes) / (p(yes) + p(no)) of the answer's first token."""


@dataclass(frozen=True)
class CaptionBatch:
    """N captions to score, whole groups in order; equal ids are the same image.

    image_ids, images, captions, completion_ids: N each; `images` decodes when indexed.
    groups: the rows of each group, completions of one prompt.
    encoders: `encoders(None)` is the run's training scorer, `encoders("ARCHITECTURE/TAG")` another.
    prompt: the policy's prompt. ended: whether each caption ends with an end token; None: all do.
    """

    image_ids: list[str]
    images: Sequence[Image]
    captions: list[str]
    groups: list[range]
    completion_ids: list[list[int]]
    encoders: Callable[[str | None], Encoder]
    policy: ReferencePolicy
    prompt: str = ""
    ended: list[bool] | None = None


Scorer = Callable[[CaptionBatch], Scores | Awaitable[Scores]]


@dataclass(frozen=True)
class Bank:
    """Data for `prepare`: the training images, and captions that the reference policy sampled.

    image_ids, images: the training images; sample: captions of the reference policy for part of
    them; cache: a folder for expensive results (name files by a hash of the inputs).
    """

    image_ids: list[str]
    images: Sequence[Image]
    sample: CaptionBatch
    cache: Path


def win_rate(
    reward: Callable[[CaptionBatch], Scores],
    better: CaptionBatch,
    worse: CaptionBatch | list[str],
) -> float:
    """Share of rows in which the better caption scores higher; a tie counts half.

    `worse` may be a list of captions for the same images.
    """
    if isinstance(worse, list):
        worse = replace(better, captions=worse)
    wins = 0.0
    for a, b in zip(reward(better), reward(worse), strict=True):
        if a is None or b is None:
            raise ValueError("a self-check needs a score for every caption, not None")
        wins += float(a > b) + 0.5 * float(a == b)
    return wins / len(better.captions)
