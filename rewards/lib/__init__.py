"""Code that several rewards share."""
