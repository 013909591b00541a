"""Bounds how long OpenMP's threads spin. Import it before torch: libgomp reads its settings when it is loaded.

By default libgomp's threads spin for milliseconds at a barrier before they sleep. Beside another busy process the
thread that they wait for is often not running, so they burn the processor that it needs.
"""

import os

# Rounds of a spin loop: longer than the serial stretches between two parallel regions, far shorter than a time slice.
SPIN_COUNT = "10000"

if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
