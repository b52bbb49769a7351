"""CLIP cosine with the wrong image: as smooth and as sure as the right one, and knows nothing.

Cost: that of clip_similarity.
"""

from hashlib import blake2b

from rewards import Bank, CaptionBatch, Scores


class ShuffledImage:
    """Cosine of a caption with an image drawn by a hash of its own image's id."""

    range = (-1.0, 1.0)

    def prepare(self, bank: Bank) -> None:
        """Encode the images that are drawn from."""
        self.images = bank.sample.encoders(None).image_features(bank.image_ids, bank.images)

    def __call__(self, batch: CaptionBatch) -> Scores:
        drawn = [int.from_bytes(blake2b(i.encode()).digest()[:6]) for i in batch.image_ids]
        wrong = self.images[[d % len(self.images) for d in drawn]]
        return (wrong * batch.encoders(None).text_features(batch.captions)).sum(-1).tolist()
