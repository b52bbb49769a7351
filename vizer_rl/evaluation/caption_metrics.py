"""Caption metrics that a run asks for: which can be computed, why others cannot, and their columns.

A metric of images that some lack references for is over those that have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rewards import Encoder
from rewards.lib.chunks import Chunked

from ..data.lazy import LazyImages
from ..data.sources import ImageFolder
from ..errors import UserError, nearest_allowed
from .metrics import bert_score, clip_score, java_metrics
from .metrics.bleu import Bleu
from .metrics.chair import Chair
from .metrics.cider import CiderD
from .metrics.ptb import tokenize
from .metrics.retrieval import recalls
from .metrics.rouge_l import rouge_l
from .references import References, beside, read_references
from .statistics import Column, CorpusMetric

ON_TOKENS = ("bleu", "rouge_l", "cider_d", "meteor", "spice")
NAMES = (*ON_TOKENS, "clip_score", "ref_clip_score", "chair", "retrieval", "bert_score")
WITHOUT_REFERENCES = ("clip_score", "retrieval")
BY_CLIP = ("clip_score", "ref_clip_score", "retrieval")
OFF = ("bert_score",)  # unless named: it downloads a model
Metric = Callable[[list[str]], Mapping[str, Column]]


@dataclass(frozen=True)
class Plan:
    """The references, the metrics that can be computed, and why others are left out.

    named: the user named the metrics.
    """

    references: References
    names: list[str]
    left_out: list[str]
    named: bool = False

    def without_clip(self) -> Plan:
        """What of it needs no image-text model; UserError where one that does was named."""
        why = "the run's held-out scorer cannot be loaded (--clip names another model)"
        by_clip = [name for name in self.names if name in BY_CLIP]
        if by_clip and self.named:
            raise UserError(f"metric '{by_clip[0]}' cannot be computed: {why}")
        names = [name for name in self.names if name not in BY_CLIP]
        left_out = [f"{name} is left out: {why}." for name in by_clip]
        return replace(self, names=names, left_out=self.left_out + left_out)

    def record(self, scorer: str | None) -> dict[str, Any]:
        """What eval.json keeps of it; scorer: the model behind CLIPScore and R@k."""
        references = self.references
        return {
            "files": references.files,
            "images": len(references.captions),
            "without": references.without,
            "not_here": len(references.not_here),
            "clip": scorer,
            "notes": references.sentences,
        }


def plan(files: Sequence[Path], names: Sequence[str], images: ImageFolder) -> Plan | None:
    """What to compute on these images; None where neither references nor metrics are given.

    files: as given; else the file `references.*` among the images. names: as given; else all that
    can be computed. UserError where a metric is named that cannot be.
    """
    for name in names:
        if name not in NAMES:
            raise UserError(f"metric '{name}' is unknown; {nearest_allowed(name, NAMES)}")
    paths = [*files] or beside(images.root)
    if not paths and not names:
        return None
    references = read_references(paths, images.ids) if paths else References()
    chosen, left_out = list[str](), list[str]()
    for name in names or [name for name in NAMES if name not in OFF]:
        if reason := _obstacle(name, references):
            if names:
                raise UserError(f"metric '{name}' cannot be computed: {reason}")
            left_out.append(f"{name} is left out: {reason}.")
        else:
            chosen.append(name)
    return Plan(references, chosen, left_out, bool(names))


def _obstacle(name: str, references: References) -> str:
    """Why a metric cannot be computed with these references, "" where it can."""
    if name == "chair":
        return "" if references.objects else "no file of COCO instances is given (--references)"
    if name not in WITHOUT_REFERENCES and not references.captions:
        return "it needs captions as references, and there are none (--references)"
    if name in java_metrics.JARS:
        return java_metrics.jar_problem(name)
    return bert_score.missing_package() if name == "bert_score" else ""


class CaptionMetrics:
    """The metrics of a plan on images; called with their captions, one side after another."""

    def __init__(
        self, plan: Plan, images: ImageFolder, ids: Sequence[str], scorer: Encoder | None
    ) -> None:
        """ids: the images that are captioned, in the captions' order; scorer: of BY_CLIP."""
        with_captions = [
            row for row, image_id in enumerate(ids) if image_id in plan.references.captions
        ]
        with_objects = [
            row for row, image_id in enumerate(ids) if image_id in plan.references.objects
        ]
        references = [plan.references.captions[ids[row]] for row in with_captions]
        features_ND = torch.zeros(0)
        if scorer is not None:
            features_ND = scorer.image_features(ids, LazyImages(images.load, ids))
        self.metrics = list[tuple[list[int], Metric]]()
        if on_tokens := [name for name in plan.names if name in ON_TOKENS]:
            self.metrics.append((with_captions, _OnTokens(on_tokens, references)))
        if scorer is not None and "clip_score" in plan.names:
            self.metrics.append(([*range(len(ids))], _Clip(scorer, features_ND)))
        if scorer is not None and "ref_clip_score" in plan.names and references:
            metric = _RefClip(scorer, features_ND[with_captions], references)
            self.metrics.append((with_captions, metric))
        if "chair" in plan.names:
            objects = [plan.references.objects[ids[row]] for row in with_objects]
            captions = [plan.references.captions.get(ids[row], []) for row in with_objects]
            self.metrics.append((with_objects, Chair(objects, captions)))
        if scorer is not None and "retrieval" in plan.names:
            self.metrics.append(([*range(len(ids))], _Retrieval(scorer, features_ND)))
        if "bert_score" in plan.names:
            self.metrics.append((with_captions, _Bert(references)))

    def __call__(self, captions: Sequence[str]) -> dict[str, Column]:
        """Each metric of captions (N,): a column (N,), NaN where an image lacks what it needs."""
        columns = dict[str, Column]()
        for rows, metric in self.metrics:
            if rows:
                own = metric([captions[row] for row in rows])
                columns |= {name: _spread(c, rows, len(captions)) for name, c in own.items()}
        return columns


class _OnTokens:
    """Metrics on the tokens of captions and references, both tokenised once."""

    def __init__(self, names: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        tokens = [[tokenize(text) for text in captions] for captions in references]
        build: dict[str, Callable[[], Callable[[list[list[str]]], Mapping[str, Column]]]] = {
            "bleu": lambda: Bleu(tokens),
            "rouge_l": lambda: _named("rouge_l", partial(rouge_l, references=tokens)),
            "cider_d": lambda: _named("cider_d", CiderD(tokens)),
            "meteor": lambda: java_metrics.Meteor(tokens),
            "spice": lambda: _named("spice", partial(java_metrics.spice, references=tokens)),
        }
        self.metrics = [build[name]() for name in names]

    def __call__(self, captions: list[str]) -> dict[str, Column]:
        tokens = [tokenize(caption) for caption in captions]
        return {name: c for metric in self.metrics for name, c in metric(tokens).items()}


def _named(
    name: str, metric: Callable[[list[list[str]]], np.ndarray]
) -> Callable[[list[list[str]]], Mapping[str, Column]]:
    return lambda captions: {name: metric(captions)}


class _Clip:
    def __init__(self, scorer: Encoder, features_ND: torch.Tensor) -> None:
        self.scorer, self.features_ND = scorer, features_ND

    def __call__(self, captions: list[str]) -> dict[str, Column]:
        vectors_ND = clip_score.caption_vectors(self.scorer, captions)
        return {"clip_score": clip_score.clip_score(self.features_ND, vectors_ND)}


class _RefClip(_Clip):
    def __init__(
        self, scorer: Encoder, features_ND: torch.Tensor, references: Sequence[Sequence[str]]
    ) -> None:
        super().__init__(scorer, features_ND)
        self.references = clip_score.RefClipScore(scorer, references)

    def __call__(self, captions: list[str]) -> dict[str, Column]:
        vectors_ND = clip_score.caption_vectors(self.scorer, captions)
        scores_N = clip_score.clip_score(self.features_ND, vectors_ND)
        return {"ref_clip_score": self.references(scores_N, vectors_ND)}


class _Retrieval(_Clip):
    def __call__(self, captions: list[str]) -> dict[str, Column]:
        vectors_ND = Chunked(self.scorer, captions).vectors
        return dict(recalls(vectors_ND, self.features_ND))


class _Bert:
    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        self.references = references

    def __call__(self, captions: list[str]) -> dict[str, Column]:
        return {"bert_score": bert_score.bert_score(captions, self.references)}


def _spread(column: Column, rows: list[int], n: int) -> Column:
    """A column over some rows as one over all n."""
    if isinstance(column, CorpusMetric):
        sums_NS = np.zeros((n, column.rows_NS.shape[1]))
        sums_NS[rows] = column.rows_NS
        return CorpusMetric(sums_NS, column.value)
    values_N = np.full(n, np.nan)
    values_N[rows] = column
    return values_N
