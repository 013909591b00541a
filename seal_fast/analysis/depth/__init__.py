"""Prediction depth."""
