"""How alike the features of two networks are, or of two layers."""
