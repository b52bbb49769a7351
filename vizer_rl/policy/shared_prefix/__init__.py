"""Completions of a group behind one prompt, for sampling and for the loss."""
