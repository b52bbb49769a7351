"""Scores that need references or the truth; rewards never see these."""
