"""The policy's internal vision-language alignment: ViZer's mapper, used as a reward.

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
from rewards.lib.mapper import Mapper, taken_up

RATE = 0.75
COLLAPSED = 0.05  # variance of mapped directions, as a share of the targets': below, it is noise


class Alignment:
    """Cosine of the mapped caption states with the frozen policy's own vision features."""

    range = (-1.0, 1.0)
    floor = -1.0
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
        """`reading`: whether the caption's states have seen the image; `mapper`: the file of one
        that a run kept (runs/NAME/mapper.pt or rewards/alignment.pt), read as it was made; `width`,
        `steps`, `learning_rate`: of a new one; `step`: differences below are noise."""
        self.reading: str = reading
        self.file, self.width, self.steps = mapper, width, steps
        self.learning_rate, self.step = learning_rate, step
        self.mapper: Mapper | None = None
        self.matching, self._variance = 0.0, list[float]()

    def _states(self, batch: CaptionBatch) -> torch.Tensor:
        if self.reading == "text":
            return batch.policy.caption_states(batch.captions)
        return batch.policy.caption_states(batch.captions, batch.images)

    def prepare(self, bank: Bank) -> None:
        """Train the mapper on the base policy's own captions, or read it from the cache."""
        sample, policy = bank.sample, bank.sample.policy
        if self.file is not None:
            features = policy.image_features(sample.image_ids[:1], sample.images)
            self.mapper, self.reading, self.matching = taken_up(self.file, features)
            return
        told = [policy.key, self.reading, self.width, self.steps, self.learning_rate]
        told += [sample.prompt, *sample.image_ids, *sample.captions]
        name = blake2b("\n".join(map(str, told)).encode(), digest_size=8).hexdigest()
        path = bank.cache / f"alignment-{name}.pt"
        if path.exists():  # only what had not collapsed is kept
            features = policy.image_features(sample.image_ids[:1], sample.images)
            self.mapper, self.reading, self.matching = taken_up(str(path), features)
            return
        features = policy.image_features(sample.image_ids, sample.images)
        states = self._states(sample)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            mapper = Mapper(states.shape[1], features.shape[1], self.width).to(states.device)
        self.matching = mapper.fit(states, features, self.steps, self.learning_rate)
        variance = mapper.variance(states, features)
        if variance < COLLAPSED:
            raise ValueError(
                f"the mapper has collapsed: the directions it gives to {len(states)} images have "
                f"{variance:.3f} of the variance of the images' own (at least {COLLAPSED} is "
                "needed); give it more steps, or leave this reward out"
            )
        self.mapper = mapper.requires_grad_(False)
        self.save(path.parent, path.name)

    def save(self, folder: Path, name: str = "alignment.pt") -> None:
        """Write the mapper, its held-out matching accuracy and how it reads."""
        assert self.mapper is not None
        folder.mkdir(parents=True, exist_ok=True)
        about = {"matching": self.matching, "reading": self.reading, "width": self.width}
        torch.save({"mapper": self.mapper.state_dict(), **about}, folder / name)

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
        told = {"matching": self.matching}
        if self._variance:
            told["variance"] = sum(self._variance) / len(self._variance)
        self._variance.clear()
        return told


def check(reward: Alignment, right: CaptionBatch, wrong: CaptionBatch) -> float:
    return win_rate(reward, right, wrong)
