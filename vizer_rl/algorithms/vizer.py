"""stub"""

from .configs import ViZerSettings
from .grpo import GRPO


class ViZer(GRPO):
    """stub"""

    Config = ViZerSettings
