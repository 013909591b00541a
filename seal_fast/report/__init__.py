"""`python -m seal_fast report`: runs, and the analyses of them, on one HTML page. Imports no torch."""
