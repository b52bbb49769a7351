"""The report of a run: read tolerantly, written as one HTML file that needs nothing else."""
