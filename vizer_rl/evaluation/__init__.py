"""Captions before and after training, measured."""
