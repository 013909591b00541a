"""Shared by the analyses: the command runner, networks, images, features, k-NN, result files, plots."""
