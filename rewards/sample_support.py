"""Self-consistency: do captions that the reference policy sampled for the image say the same?

The share of the caption's content words (each counted once, plurals as singulars) that at least
`min_samples` of `samples` captions have, which the policy before training sampled on views of the
image: cropped to 80-100 % of each side and a little darker or brighter. Every second view is also
mirrored, but not for a caption that says left or right: that is compared with views as they are.
Self-consistency (MM-UPT's vote, arXiv 2505.22453) against a frozen, stored sample: training cannot
move its judge, and learns nothing that the base never says. Hack: saying little; a small weight.
Cost: 1.5 × `samples` captions of the base per training image, once, kept on disk; then nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL.Image import Image

from rewards import Bank, CaptionBatch, Parts, ReferencePolicy, Scores, win_rate
from rewards.lib import disk_cache
from rewards.lib.images import augmented, image_hash
from rewards.lib.text import lemmas

RATE = 0.85
SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)
SEED, TOGETHER = 0, 64  # of views and samples; images sampled for before the cache is written


class SampleSupport:
    """Experimental: share of the content words that the frozen policy's own samples bear out."""

    range = (0.0, 1.0)
    reads = ("image", "text", "policy")

    def __init__(self, *, samples: int = 8, min_samples: int = 2) -> None:
        """`samples`: captions that a word is searched in; `min_samples`: how many must have it."""
        if samples < 2 or not 1 <= min_samples <= samples:
            need = "sample_support: need samples >= 2 and 1 <= min_samples <= samples"
            raise ValueError(f"{need}, not {samples} and {min_samples}")
        self.samples, self.min_samples = samples, min_samples
        self.captions: dict[str, list[str]] = {}  # by image: `samples` plain, then mirrored ones
        self.names: dict[str, str] = {}  # image id -> its pixels' key
        self.path: Path | None = None

    def prepare(self, bank: Bank) -> None:
        """Sample captions for views of all images of the bank, or read them from the cache."""
        policy = bank.sample.policy
        inputs = json.dumps([policy.key, bank.sample.prompt, self.samples, SEED])
        key = blake2b(inputs.encode(), digest_size=8).hexdigest()
        self.path = bank.cache / f"sample_support-{key}.captions"
        self.captions = json.loads(disk_cache.read(self.path) or b"{}")
        self.names = {}
        self.learn(policy, zip(bank.image_ids, bank.images, strict=True))

    def learn(self, policy: ReferencePolicy, images: Iterable[tuple[str, Image]]) -> None:
        """Sample captions for those of these images that are new."""
        new: dict[str, Image] = {}
        for name, image in images:
            self.names[name] = key = image_hash(image)
            if key not in self.captions:
                new[key] = image
            if len(new) == TOGETHER:
                self._sample(policy, new)
                new = {}
        self._sample(policy, new)

    def _sample(self, policy: ReferencePolicy, new: dict[str, Image]) -> None:
        if not new:
            return
        assert self.path is not None
        views = [view for key, image in new.items() for view in self.views(image, key)]
        sampled = [captions[0] for captions in policy.sample(views, 1, SEED)]
        count = len(views) // len(new)
        self.captions |= {key: sampled[k * count : (k + 1) * count] for k, key in enumerate(new)}
        disk_cache.write(self.path, json.dumps(self.captions).encode())

    def views(self, image: Image, key: str) -> list[Image]:
        """`samples` views of the image, then half as many that are mirrored as well."""
        rng = np.random.default_rng([SEED, *key.encode()])
        count = self.samples + self.samples // 2
        return [augmented(image, rng, mirrored=k >= self.samples) for k in range(count)]

    def support(self, image_id: str, caption: str) -> list[str]:
        """The `samples` captions that this one is held against."""
        captions = self.captions[self.names[image_id]]
        plain, mirrored = captions[: self.samples], captions[self.samples :]
        return plain if SIDES.search(caption) else [*plain[len(mirrored) :], *mirrored]

    def parts(self, batch: CaptionBatch) -> Parts:
        """Per caption its content words, 1 for those that are borne out."""
        if self.path is None:
            raise RuntimeError("sample_support was not prepared: it needs the base's samples")
        rows = {n: k for k, n in enumerate(batch.image_ids) if n not in self.names}
        self.learn(batch.policy, ((name, batch.images[row]) for name, row in rows.items()))
        parts: Parts = []
        for name, caption in zip(batch.image_ids, batch.captions, strict=True):
            others = [lemmas(other) for other in self.support(name, caption)]
            counts = {w: sum(w in other for other in others) for w in lemmas(caption)}
            parts.append([(w, float(count >= self.min_samples)) for w, count in counts.items()])
        return parts

    def __call__(self, batch: CaptionBatch) -> Scores:
        return [sum(v for _, v in words) / max(1, len(words)) for words in self.parts(batch)]


def check(reward: SampleSupport, right: CaptionBatch, wrong: CaptionBatch) -> float:
    return win_rate(reward, right, wrong)
