"""Caption length as the reward, the longer the better: it reads no image. Cost: none."""

from rewards import CaptionBatch, Scores


class Longer:
    """The number of words."""

    def __call__(self, batch: CaptionBatch) -> Scores:
        return [float(len(caption.split())) for caption in batch.captions]
