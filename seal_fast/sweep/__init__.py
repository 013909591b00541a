"""Sweeps: many runs over a space of settings. Only `scheduling` imports Ray."""
