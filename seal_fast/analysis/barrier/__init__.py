"""Whether the loss rises between two networks."""
