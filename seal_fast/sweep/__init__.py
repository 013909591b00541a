"""Sweeps: many runs over a space of settings, scheduled by Ray Tune. Only `tune.py` imports Ray."""
