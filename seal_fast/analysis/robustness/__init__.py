"""Accuracy on corrupted images, and telling images of other data sets from the own ones."""
