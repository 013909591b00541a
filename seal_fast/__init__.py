"""seal_fast: a fast training engine for SEAL and its rivals."""

__version__ = "0.1.0"
