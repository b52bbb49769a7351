"""Evaluation: captions before and after training, in metrics with intervals."""
