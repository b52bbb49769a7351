"""Benchmarks against stock TRL."""
