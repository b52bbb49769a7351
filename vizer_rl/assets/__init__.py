"""The embedded checkpoints."""
