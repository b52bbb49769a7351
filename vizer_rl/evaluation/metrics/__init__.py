"""Metrics against references or the truth of drawn scenes: for evaluation, experiments and audit.

No reward and no training step may read them.
"""
