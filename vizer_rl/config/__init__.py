"""Run files: schema, reading, checks, and what a run directory says of itself."""
