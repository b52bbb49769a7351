"""Metrics that need references or the truth of drawn scenes.

No reward and no training step may read them; the evaluation, the experiments and, on drawn scenes,
the audit do.
"""
