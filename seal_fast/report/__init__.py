"""`python -m seal_fast report DIR`: the runs of a sweep, or of any folder of runs, on one self-contained HTML page."""
