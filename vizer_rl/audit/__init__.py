"""The audit of a run's rewards before training; `audit` runs it, `verdict` judges its numbers."""
