"""Grounding of noun phrases: is each thing that the caption names somewhere in the image?

Noun phrases n of the caption against 15 crops of the image (whole, 2 x 2, 3 x 3, centre):

    g(n, v) = max_crop cos(crop, "a photo of n"),   pct = share of the bank's images v' with
    g(n, v') < g(n, v),   R = mean_n clip((pct - .5) / .45, 0, 1) m(n) - share of n with pct < .5

An adjective stays with its noun; m(n) is the share of attribute swaps ("red car" for "blue car",
lib/phrases.py) that fit the whole image less well: a crop would not tell small from large. A phrase
counts once, with or without its adjectives; past `max_phrases` none earns credit. Local and global
similarity after GLSim (arXiv 2508.19972). Hack: one sure thing; keep self_retrieval by it.
Cost: 15 image encodings per image once in a run, a text encoding per new phrase and swap of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from PIL.Image import Image

from rewards import Bank, CaptionBatch, Encoder, Parts, Scores, noun_phrases, win_rate
from rewards.lib.crops import CROPS, Crops
from rewards.lib.phrases import Swaps, unique

RATE = 0.9
REMEMBERED = 50_000  # phrases


class RegionGrounding:
    """Experimental: how well the noun phrases fit regions of the image, calibrated per phrase."""

    range = (-1.0, 1.0)
    floor = -1.0
    reads = ("image", "text")

    def __init__(
        self,
        *,
        encoder: str | None = None,
        tagger: Literal["builtin", "spacy"] = "builtin",
        bank: int = 128,
        max_phrases: int = 8,
        swaps: int = 8,
        step: float = 0.02,
    ) -> None:
        """`encoder`: another one than the run's scorer; `tagger`: spacy needs the extra grounding;
        `bank`: images that a phrase is calibrated on; `max_phrases`: that can earn credit;
        `swaps`: for each adjective, 0 for none; `step`: differences below are noise."""
        noun_phrases("", tagger)  # a missing tagger is reported before anything is loaded
        self.encoder, self.tagger, self.bank = encoder, tagger, bank
        self.max_phrases, self.swaps, self.step = max_phrases, swaps, step
        self.crops: torch.Tensor | None = None
        self._phrases: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def prepare(self, bank: Bank) -> None:
        """Encode crops of captioned images, and learn which adjectives exclude each other."""
        sample = bank.sample
        stride = max(1, len(sample.image_ids) // self.bank)
        self.crops = self._crops(sample, sample.image_ids, sample.images, stride)
        phrases = [p for c in sample.captions for p in noun_phrases(c, self.tagger)]
        self.swapped = Swaps(phrases, self.swaps)

    def _crops(
        self, batch: CaptionBatch, ids: Sequence[str], images: Sequence[Image], stride: int = 1
    ) -> torch.Tensor:
        """(N, 15, D) unit vectors of the crops of each `stride`-th image."""
        names = [f"{i}#{k}" for i in ids[::stride] for k in range(len(CROPS))]
        features = batch.encoders(self.encoder).image_features(names, Crops(images, stride))
        return features.view(-1, len(CROPS), features.shape[-1])

    def _learn(self, phrases: Iterable[str], clip: Encoder) -> None:
        """Remember each new phrase's vector (D,) and its sorted fit to the bank's images (M,)."""
        assert self.crops is not None
        if len(self._phrases) > REMEMBERED:
            self._phrases.clear()
        new = [p for p in dict.fromkeys(phrases) if p not in self._phrases]
        for start in range(0, len(new), 64):
            chunk = new[start : start + 64]
            vectors = clip.text_features([f"a photo of {p}" for p in chunk])
            fits = (self.crops @ vectors.T).amax(1).T.contiguous().sort(1).values
            self._phrases.update(zip(chunk, zip(vectors, fits, strict=True), strict=True))

    def _credit(self, phrase: str, swaps: set[str], crops: torch.Tensor) -> float:
        """Credit in [0, 1] of one phrase for an image's crops (15, D), or -1: not grounded."""
        vector, fits = self._phrases[phrase]
        percentile = int(torch.searchsorted(fits, (crops @ vector).max())) / len(fits)
        if percentile < 0.5:
            return -1.0
        fit = min((percentile - 0.5) / 0.45, 1.0)
        if not swaps:
            return fit
        others = torch.stack([self._phrases[s][0] for s in swaps]) @ crops[0]
        return fit * float((others < crops[0] @ vector).float().mean())

    def parts(self, batch: CaptionBatch) -> Parts:
        """Each caption's phrases with what they add: credit in [0, 1], or -1 where ungrounded."""
        if self.crops is None:
            raise RuntimeError("region_grounding was not prepared: it needs a bank")
        phrases = [unique(noun_phrases(c, self.tagger)) for c in batch.captions]
        swaps = [{p: set(self.swapped(p)) - set(own) for p in own} for own in phrases]
        needed = [p for own in swaps for phrase, others in own.items() for p in (phrase, *others)]
        self._learn(needed, batch.encoders(self.encoder))
        crops = self._crops(batch, batch.image_ids, batch.images)
        parts: Parts = []
        for own, vectors in zip(swaps, crops, strict=True):
            credits = [(p, self._credit(p, others, vectors)) for p, others in own.items()]
            beyond = [(p, min(v, 0.0)) for p, v in credits[self.max_phrases :]]
            parts.append(credits[: self.max_phrases] + beyond)
        return parts

    def __call__(self, batch: CaptionBatch) -> Scores:
        credits = [[value for _, value in parts] for parts in self.parts(batch)]
        means = [sum(values) / len(values) if values else self.floor for values in credits]
        return [round(m / self.step) * self.step for m in means]


def check(reward: RegionGrounding, right: CaptionBatch, wrong: CaptionBatch) -> float:
    return win_rate(reward, right, wrong)
