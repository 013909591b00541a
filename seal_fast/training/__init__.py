"""Training: the loop, one step of it, what a checkpoint holds."""
