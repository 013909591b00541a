"""Whether the units of a network are in use, how many directions its features fill, how its weights still move."""
