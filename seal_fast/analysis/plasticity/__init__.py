"""Whether the units of a network are still in use, and how many directions its features fill."""
