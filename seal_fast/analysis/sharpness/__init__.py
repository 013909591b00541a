"""How much the loss rises around the weights of a network."""
