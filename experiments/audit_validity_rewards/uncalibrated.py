"""self_retrieval at CLIP's own scale of 100, without a floor: the reward is almost binary.

Cost: that of self_retrieval.
"""

from rewards import Bank
from rewards.self_retrieval import SelfRetrieval


class Uncalibrated(SelfRetrieval):
    """Log-probability of the right image at scale 100, down to -1000 nats."""

    def __init__(self) -> None:
        super().__init__(floor=-1000.0)

    def prepare(self, bank: Bank) -> str | None:
        """As self_retrieval, but the scale is not calibrated."""
        remark = super().prepare(bank)
        self.scale = 100.0
        return remark
