"""The main job and what it needs while it runs."""
