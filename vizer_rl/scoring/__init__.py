"""The reward side of training: reward functions, their aggregation, frozen scorers."""
