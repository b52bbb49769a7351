"""Self-retrieval: does the caption find its own image among hard and random negatives?

    R = log softmax_j( s cos(caption, image_j) ) at the right image, floored

over the right image, its `hard` nearest neighbours in a frozen bank of the training images (other
than the scorer's own blind spots where another encoder picks them) and `random` others, without
near-duplicates. The scale s is calibrated so that the frozen policy's captions find their image
with mean probability `base_probability` or, under too weak a scorer, to the likeliest scale (arXiv
1706.04599): a sharper one puts most rewards on the floor. DiscriTune (arXiv 2304.01662) with a
bank, calibration and floor. A smaller bank gives as many negatives as it can, in proportion.
Cost: one text encoding per sentence, a product with the bank. Hack: rare details.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch.nn.functional import normalize

from rewards import Bank, CaptionBatch, Parts, Scores, win_rate
from rewards.lib.chunks import Chunked
from rewards.lib.negatives import fit_negatives

RATE = 0.95


class SelfRetrieval:
    """Log-probability of the right image among hard and random negatives, given the caption."""

    reads = ("image", "text")

    def __init__(
        self,
        *,
        encoder: str | None = None,
        neighbours: str | None = None,
        hard: int = 32,
        random: int = 32,
        near_duplicate: float = 0.95,
        base_probability: float = 0.45,
        floor: float = -6.0,
        step: float = 0.05,
    ) -> None:
        """`encoder`: another one than the run's scorer; `neighbours`: what picks the hard
        negatives, an encoder or "policy" for its vision tower; `hard`, `random`: negatives per
        image; `near_duplicate`: image cosine above which it is the same picture;
        `base_probability`: what the base is calibrated to; `floor`: nats; `step`: noise below."""
        self.encoder, self.neighbours = encoder, neighbours
        self.hard, self.random, self.near_duplicate = hard, random, near_duplicate
        self.base_probability, self.floor, self.step = base_probability, floor, step
        self.range = (floor, 0.0)
        self.scale = self.base = 0.0

    def prepare(self, bank: Bank) -> str | None:
        """Encode the bank, choose the scale; a sentence where it holds fewer negatives than set."""
        counts, sentence = fit_negatives(self.hard, self.random, len(bank.image_ids))
        self.num_hard, self.num_random = counts
        self.ids = bank.image_ids
        self.bank = bank.sample.encoders(self.encoder).image_features(self.ids, bank.images)
        features = self._picker_features(bank.sample, self.ids, bank.images)
        # Mean-pooled features of a tower are all alike but for what they differ in from the mean.
        self.mean = features.mean(0) if self.neighbours else torch.zeros_like(features[0])
        self.picker = normalize(features - self.mean, dim=-1)
        order = torch.randperm(len(self.bank), generator=torch.Generator().manual_seed(0))
        self.chosen = order[: self.num_random].to(self.bank.device)
        cosines, _ = self._cosines(bank.sample)
        scales = torch.logspace(-1, 2.7, 400).tolist()
        logps = torch.stack([(s * cosines).log_softmax(1)[:, 0] for s in scales])
        probabilities = logps.exp().mean(1)
        reached = (probabilities >= self.base_probability).nonzero()
        best = int(reached[0]) if len(reached) else int(logps.mean(1).argmax())
        self.scale, self.base = scales[best], float(probabilities[best])
        return sentence

    def _picker_features(
        self, batch: CaptionBatch, ids: Sequence[str], images: Sequence[Image]
    ) -> torch.Tensor:
        """(N, D) features of what picks the hard negatives."""
        name = self.neighbours or self.encoder
        picker = batch.policy if name == "policy" else batch.encoders(name)
        return picker.image_features(ids, images)

    def _cosines(self, batch: CaptionBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Captions with their image and its negatives (N, 1 + negatives), and whose rows in the
        bank those are; -inf for the image itself and its doubles under scorer or picker."""
        clip = batch.encoders(self.encoder)
        images = clip.image_features(batch.image_ids, batch.images)
        captions = Chunked(clip, batch.captions).vectors
        features = self._picker_features(batch, batch.image_ids, batch.images)
        similarity = normalize(features - self.mean, dim=-1) @ self.picker.T
        double = torch.maximum(images @ self.bank.T, similarity) > self.near_duplicate
        closest = similarity.masked_fill(double, -torch.inf).topk(self.num_hard, dim=1).indices
        rows = torch.cat([closest, self.chosen.expand(len(images), -1)], 1)
        wrong = (captions @ self.bank.T).masked_fill(double, -torch.inf).gather(1, rows)
        return torch.cat([(images * captions).sum(-1, keepdim=True), wrong], 1), rows

    def __call__(self, batch: CaptionBatch) -> Scores:
        if not self.scale:
            raise RuntimeError("self_retrieval was not prepared: it needs a bank")
        score = (self.scale * self._cosines(batch)[0]).log_softmax(1)[:, 0].clamp(min=self.floor)
        return ((score / self.step).round() * self.step).tolist()

    def parts(self, batch: CaptionBatch) -> Parts:
        """The probability of the right image, and of the one most taken for it."""
        cosines, rows = self._cosines(batch)
        probability = (self.scale * cosines).softmax(1)
        wrong, index = probability[:, 1:].max(1)
        names = [self.ids[i] for i in rows[torch.arange(len(rows)), index].tolist()]
        columns = zip(probability[:, 0].tolist(), names, wrong.tolist(), strict=True)
        return [[("this image", right), (name, taken)] for right, name, taken in columns]

    def notes(self) -> dict[str, float]:
        """`base_probability`: what the calibration reached on the base's captions."""
        return {"base_probability": self.base}


def check(reward: SelfRetrieval, right: CaptionBatch, wrong: CaptionBatch) -> float:
    return win_rate(reward, right, wrong)
