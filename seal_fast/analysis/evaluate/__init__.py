"""How good and how well calibrated the predictions of trained networks are."""
