"""Scores that need references or the truth, one file each: rewards never see these."""
