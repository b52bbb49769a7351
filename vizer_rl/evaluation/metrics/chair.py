"""CHAIR (Rohrbach et al. 2018): objects that a caption mentions and the image does not hold.

CHAIR-i is the share of mentions that are hallucinated, over the corpus; CHAIR-s the share of
captions with such a mention; object recall the share of the image's classes that are mentioned.
An image holds what its instances are annotated with and what its references mention.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..statistics import Column, CorpusMetric, ratio
from .coco_objects import mentions


class Chair:
    """The COCO classes of N images; called with their captions."""

    def __init__(
        self, objects: Sequence[set[str]], references: Sequence[Sequence[str]] | None = None
    ) -> None:
        """objects: annotated classes; references: captions whose objects are there as well."""
        texts = references or [()] * len(objects)
        pairs = zip(objects, texts, strict=True)
        self.objects = [o.union(*map(mentions, captions)) for o, captions in pairs]

    def __call__(self, captions: Sequence[str]) -> dict[str, Column]:
        """CHAIR-i, CHAIR-s and object recall of captions (N,), by their names in eval.json."""
        rows = []
        for classes, objects in zip(map(mentions, captions), self.objects, strict=True):
            wrong = sum(label not in objects for label in classes)
            rows.append([wrong, len(classes), len(objects & set(classes)), len(objects)])
        counts = np.array(rows, np.float64)
        return {
            "chair_i": CorpusMetric(counts[:, :2], ratio),
            "chair_s": (counts[:, 0] > 0).astype(np.float64),
            "object_recall": CorpusMetric(counts[:, 2:], ratio),
        }
