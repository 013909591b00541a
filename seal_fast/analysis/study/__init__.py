"""Every analysis of some runs in one go."""
