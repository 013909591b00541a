"""Few-shot episodes on frozen features."""
