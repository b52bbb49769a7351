"""Rows of captions: a batch of images captioned, scored and searched for doubtful words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast
from zlib import crc32

from PIL.Image import Image
from torch import Tensor
from transformers import set_seed

from rewards.lib.chunks import Chunked
from rewards.lib.lexicon import Lexicon
from rewards.lib.word_classes import WordClasses

from ...errors import UserError
from ...files import read_jsonl
from ...policy import load
from ...policy.captioner import Caption
from ...scoring import clip
from ...scoring.reward import run_opening
from ..doubtful_words import doubtful_words
from ..run_policy import RunPolicy
from .journal import Doubtful, Row
from .models import OFF
from .pictures import Picture
from .unsure_words import UnsureWords

# (images, candidates of each) -> the index of the best of each
Choose = Callable[[Sequence[str], Sequence[Image], Sequence[Sequence[Caption]]], list[int]]


class RowMaker:
    """Captions, scores and doubts of images under one policy, as rows of a journal."""

    def __init__(
        self,
        policy: RunPolicy,
        key: str,
        *,
        base: bool = False,
        best_of: int = 1,
        choose: Choose | None = None,
        dial: tuple[float, float] | None = None,
    ) -> None:
        """base: also captions of the policy before training; best_of, choose: sampled captions of
        each image, and the best of them; dial: of unsure words, with their temperature."""
        self.policy, self.key, self.base = policy, key, base
        self.best_of, self.choose, self.dial = best_of, choose, dial
        name = policy.run.scorer.heldout
        opening = run_opening(policy.run)
        self.scorer = None if name == OFF else clip.OpenClip(name, load.device(), opening=opening)
        self.eos = {*load.eos_ids(policy.model, policy.processor)}

    def __call__(
        self, pictures: Sequence[Picture], images: Sequence[Image], classes: WordClasses | None
    ) -> list[Row]:
        """The rows of these images; doubtful words are None, to come, without classes."""
        names = [picture.name for picture in pictures]
        captions = self._captions(names, images)
        texts = [_utf8(caption.text) for caption in captions]
        columns: dict[str, Sequence[object]] = {"image": names, "caption": texts}
        base = self._base(images) if self.base else None
        if base is not None:
            columns["base"] = base
        if self.scorer is not None:
            features = self._features(names, images)
            columns["score"] = self._scores(features, texts)
            if base is not None:
                columns["base_score"] = self._scores(features, base)
            columns["doubtful"] = self._doubtful(features, texts, classes)
        if self.dial:
            columns["unsure"] = self._unsure(images, texts, classes)
        columns["ended"] = [bool(self.eos.intersection(caption.ids[-1:])) for caption in captions]
        columns["bytes"] = [picture.size for picture in pictures]
        columns["key"] = [self.key] * len(names)
        rows = zip(*columns.values(), strict=True)
        return [cast(Row, dict(zip(columns, row, strict=True))) for row in rows]

    def doubts(
        self, rows: Sequence[Row], images: Sequence[Image], classes: WordClasses
    ) -> list[Row]:
        """Rows of these images with the doubtful and unsure words that were to come."""
        texts = [row["caption"] for row in rows]
        new: dict[str, Sequence[object]] = {}
        if self.scorer is not None:
            features = self._features([row["image"] for row in rows], images)
            new["doubtful"] = self._doubtful(features, texts, classes)
        if self.dial:
            new["unsure"] = self._unsure(images, texts, classes)
        return [
            cast(Row, {**row, **{name: column[k] for name, column in new.items()}})
            for k, row in enumerate(rows)
        ]

    def _captions(self, names: Sequence[str], images: Sequence[Image]) -> list[Caption]:
        if self.choose is None:
            return self.policy.captions(images)
        # by the batch: a set that was stopped samples its rest as it would have
        set_seed(crc32(f"{self.policy.run.seed} {names[0]}".encode()))
        repeated = [image for image in images for _ in range(self.best_of)]
        flat = self.policy.captions(repeated, temperature=1.0)
        groups = [flat[k : k + self.best_of] for k in range(0, len(flat), self.best_of)]
        best = self.choose(names, images, groups)
        return [group[k] for group, k in zip(groups, best, strict=True)]

    def _base(self, images: Sequence[Image]) -> list[str]:
        with self.policy.before_training():
            return [_utf8(caption.text) for caption in self.policy.captions(images)]

    def _features(self, names: Sequence[str], images: Sequence[Image]) -> Tensor:
        assert self.scorer is not None
        features = self.scorer.image_features(names, images)
        self.scorer.forget()  # of a million images each comes along but once
        return features

    def _scores(self, features_ND: Tensor, captions: Sequence[str]) -> list[float]:
        assert self.scorer is not None
        cosines = (features_ND * Chunked(self.scorer, captions).vectors).sum(-1)
        return [round(cosine, 4) for cosine in cosines.tolist()]

    def _doubtful(
        self, features_ND: Tensor, captions: Sequence[str], classes: WordClasses | None
    ) -> Sequence[list[Doubtful] | None]:
        if classes is None or self.scorer is None:
            return [None] * len(captions)
        return cast(
            "list[list[Doubtful] | None]",
            doubtful_words(self.scorer, features_ND, captions, classes),
        )

    def _unsure(
        self, images: Sequence[Image], captions: Sequence[str], classes: WordClasses | None
    ) -> Sequence[Any]:
        if classes is None or self.dial is None:
            return [None] * len(captions)
        return UnsureWords(self.policy.reference, classes, *self.dial)(captions, images)


def _utf8(text: str) -> str:
    """A caption as a file can hold it: without halves of characters."""
    return text.encode(errors="replace").decode()


def evaluated_classes(run_directory: Path | None) -> WordClasses | None:
    """Classes of words by the captions that a run was evaluated with; None where it was not."""
    path = run_directory / "captions.jsonl" if run_directory else None
    if path is None or not path.is_file():
        return None
    rows = read_jsonl(path, dict[str, Any])
    texts = [str(row[side]) for row in rows for side in ("base", "trained") if side in row]
    if not texts:
        raise UserError(f"'{path}' cannot be used: it holds no captions")
    return learned_classes(texts)


def learned_classes(captions: Sequence[str]) -> WordClasses:
    """Classes of words, learned from captions."""
    return WordClasses(Lexicon.learn(captions))
