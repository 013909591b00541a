"""Transfer to other data sets: linear probe, k-NN, fine-tuning."""
