"""What becomes of single training examples over a run."""
