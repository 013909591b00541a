"""Errors, files and text tables."""
