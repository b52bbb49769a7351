"""Word certainty as a judge: which of two captions has the words that the base is sure of.

A caption's value is that of the reward `certainty` at its default dial, without what a blank image
takes off: that is a guard against what training would do, and no sign of a wrong word.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL.Image import Image

from rewards.certainty import Certainty
from rewards.lib.certain_words import CertainWords
from rewards.lib.facts import repeated

from .judges import Judges


class WordJudge:
    """Values captions by the base's certainty of their words.

    objection: why it cannot, "" where it can. Where the run uses the reward, its words are taken.
    """

    def __init__(self, judges: Judges) -> None:
        used = [r.score for r in judges.parts.scoring.rewards if isinstance(r.score, Certainty)]
        self.judges, self.objection = judges, ""
        self.reward = used[0] if used else Certainty()
        self.words = self.reward.words
        if self.words is None:
            try:
                self.words = CertainWords(judges.parts.bank.sample, "lexicon")
            except ValueError as error:  # these captions teach no classes of words
                self.objection = str(error)

    def __call__(self, ids: Sequence[str], captions: Sequence[str]) -> np.ndarray:
        """(rows,) values of captions on their images; NaN where it cannot judge."""
        if self.words is None:
            return np.full(len(captions), np.nan)
        return self.judges.by_image(ids, captions, self._values)

    def _values(
        self, ids: Sequence[str], captions: Sequence[str], images: Sequence[Image]
    ) -> list[float]:
        assert self.words is not None
        batch = self.judges.parts.scoring.batch(ids, images, captions, [[] for _ in captions])
        certain, values = self.reward.certainties(self.words.sure(batch)), []
        for caption, row in zip(batch.captions, certain, strict=True):
            again = repeated(caption, self.words.places(caption))
            worth = [self.reward.value(c) for c in row]
            values.append(sum(min(v, 0.0) if a else v for v, a in zip(worth, again, strict=True)))
        return values
