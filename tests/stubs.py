"""Encoders and batches made by hand, for tests of rewards."""

import torch
from torch.nn.functional import normalize

from rewards import CaptionBatch
from rewards.lib.images import image_hash
from vizer_rl.scoring.reference_policy import ReferencePolicy

EOS = 9


class Stub:
    """An encoder whose vectors are given by hand, and a policy that borrows them."""

    name, context_length, key = "stub", 8, "stub"

    def __init__(self, images, texts):
        self.images = {k: normalize(torch.tensor(v), dim=0) for k, v in images.items()}
        self.texts = {k: normalize(torch.tensor(v), dim=0) for k, v in texts.items()}

    def image_features(self, ids, images):
        return torch.stack([self.images[i] for i in ids])

    def text_features(self, captions):
        return torch.stack([self.texts[c] for c in captions])

    def caption_states(self, captions, images=None, end=True):
        return self.text_features(captions)

    def too_long(self, captions):
        return [len(c.split()) > self.context_length for c in captions]


def batch(stub, pairs):
    """(image id, caption) pairs as one group."""
    return CaptionBatch(
        image_ids=[i for i, _ in pairs],
        images=[None] * len(pairs),
        captions=[c for _, c in pairs],
        groups=[range(len(pairs))],
        completion_ids=[[1, EOS]] * len(pairs),
        encoders=lambda name: stub,
        policy=stub,
    )


def words(*captions):
    """Captions of one image, for rewards that read nothing else."""
    return batch(None, [("x", c) for c in captions])


class Answering(ReferencePolicy):
    """A policy with its answers to questions put in its mouth: embedded ones answer none."""

    truth: dict  # what is true of an image, by its fingerprint

    def yes(self, questions, images, view="image"):
        claims = [q.split(" ", 3)[3].partition(" in the image?")[0] for q in questions]
        result = [self.truth.get(image_hash(image), "") for image in images]
        sure = [0.9 if c in t else 0.2 for c, t in zip(claims, result, strict=True)]
        return torch.tensor(sure if view == "image" else [0.5] * len(sure))
