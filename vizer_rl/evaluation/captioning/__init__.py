"""Captions of image sets, into files that other tools read; docs/captions.md."""
