"""How far the weights of a run travel."""
