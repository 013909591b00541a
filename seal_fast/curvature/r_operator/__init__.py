"""Hessian-vector products of a ResNet by the R-operator (Pearlmutter, 1994)."""
