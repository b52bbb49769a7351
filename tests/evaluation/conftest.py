"""The run to evaluate, for every file here."""

from .evaluated_run import run  # noqa: F401
