"""CLIP cosine with another image: as smooth as the right one, and blind to the image.

Cost: that of clip_similarity.
"""

from hashlib import blake2b

from rewards import Bank, CaptionBatch, Scores
from rewards.lib.chunks import Chunked


class ShuffledImage:
    """Cosine of a caption with an image drawn by a hash of its own image's id."""

    range = (-1.0, 1.0)

    def prepare(self, bank: Bank) -> None:
        """Encode the images to draw from."""
        self.images = bank.sample.encoders(None).image_features(bank.image_ids, bank.images)

    def __call__(self, batch: CaptionBatch) -> Scores:
        hashes = [int.from_bytes(blake2b(i.encode()).digest()[:6]) for i in batch.image_ids]
        wrong = self.images[[h % len(self.images) for h in hashes]]
        captions = Chunked(batch.encoders(None), batch.captions).vectors
        return (wrong * captions).sum(-1).tolist()
