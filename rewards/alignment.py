"""Vision-language alignment inside the policy: ViZer's mapper, used as a reward.

A 2-layer MLP h (width 256) maps the frozen policy's caption states to the output of its own vision
tower; the reward is the cosine of h(states) with the image's features. h is trained before RL on
captions that the policy itself sampled (ViZer_G, arXiv 2510.12931: no label), loss 1 - cos.
Two readings of the paper: `text`, the caption is read without the image, so that only its words can
raise the score (default), and `image`, after image and prompt. A collapsed mapper is refused.
Cost: one pass of the frozen policy per caption, text-only or with the image as `reading` says.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Literal

import torch

from rewards import Bank, CaptionBatch, Scores, win_rate
from rewards.lib import disk_cache
from rewards.lib.mapper import Mapper, fit_mapper, keep, taken_up

RATE = 0.75


class Alignment:
    """Cosine of the mapped caption states with the frozen policy's own vision features."""

    range = (-1.0, 1.0)
    reads = ("image", "text", "policy")

    def __init__(
        self,
        *,
        reading: Literal["text", "image"] = "text",
        mapper: str | None = None,
        width: int = 256,
        steps: int = 400,
        learning_rate: float = 2e-3,
        step: float = 0.01,
    ) -> None:
        """`reading`: whether the caption is read after its image; `mapper`: the file of one that a
        run kept (runs/NAME/mapper.pt or rewards/alignment.pt), read as it was trained; `width`,
        `steps`, `learning_rate`: of a new one; `step`: differences below are noise."""
        self.reading: str = reading
        self.end = True  # whether the state of a caption's end token is pooled
        self.file, self.width, self.steps = mapper, width, steps
        self.learning_rate, self.step = learning_rate, step
        self.mapper: Mapper | None = None
        self.matching, self._variance = 0.0, list[float]()

    def _states(self, batch: CaptionBatch) -> torch.Tensor:
        if self.reading == "text":
            return batch.policy.caption_states(batch.captions)
        return batch.policy.caption_states(batch.captions, batch.images, end=self.end)

    def prepare(self, bank: Bank) -> None:
        """Train the mapper on the base policy's own captions, or read it from the cache."""
        sample, policy = bank.sample, bank.sample.policy
        inputs = [policy.key, self.reading, self.width, self.steps, self.learning_rate]
        inputs += [sample.prompt, *sample.image_ids, *sample.captions]
        name = blake2b("\n".join(map(str, inputs)).encode(), digest_size=8).hexdigest()
        path = bank.cache / f"alignment-{name}.pt"
        if self.file is not None or path.exists():  # a collapsed mapper is not in the cache
            features = policy.image_features(sample.image_ids[:1], sample.images)
            try:
                self.mapper, self.reading, self.end, self.matching = taken_up(
                    self.file or str(path), features
                )
                return
            except ValueError as error:
                if self.file is not None:
                    raise
                with disk_cache.tolerated(bank.cache):
                    disk_cache.discard(path, str(error))
        features = policy.image_features(sample.image_ids, sample.images)
        states = self._states(sample)
        mapper, self.matching, _ = fit_mapper(
            states,
            features,
            width=self.width,
            steps=self.steps,
            learning_rate=self.learning_rate,
            remedy="give it more steps, or leave this reward out",
        )
        self.mapper = mapper.requires_grad_(False)
        with disk_cache.tolerated(bank.cache):
            self.save(path.parent, path.name)

    def save(self, folder: Path, name: str = "alignment.pt") -> None:
        """Write the mapper, its held-out matching accuracy and how it reads captions."""
        assert self.mapper is not None
        how = {"reading": self.reading, "end": self.end, "width": self.width}
        keep(folder / name, self.mapper, matching=self.matching, **how)

    def __call__(self, batch: CaptionBatch) -> Scores:
        if self.mapper is None:
            raise RuntimeError("alignment was not prepared: its mapper needs the base's captions")
        features = batch.policy.image_features(batch.image_ids, batch.images)
        states = self._states(batch)
        first = [batch.image_ids.index(i) for i in dict.fromkeys(batch.image_ids)]
        if len(first) > 1:
            self._variance.append(self.mapper.variance(states[first], features[first]))
        score = self.mapper.cosine(states, features)
        return ((score / self.step).round() * self.step).tolist()

    def notes(self) -> dict[str, float]:
        """`matching`: held-out accuracy of the mapper (.5 is chance); `variance`: of the mapped
        directions over the images of a batch, as a share of the targets'; 0 is a collapse."""
        notes = {"matching": self.matching}
        if self._variance:
            notes["variance"] = sum(self._variance) / len(self._variance)
        self._variance.clear()
        return notes


def check(reward: Alignment, right: CaptionBatch, wrong: CaptionBatch) -> float:
    return win_rate(reward, right, wrong)
