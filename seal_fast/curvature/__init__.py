"""The Hessian of the training loss: eigenvalues, trace and spectral density from Hessian-vector products."""

from seal_fast.curvature.estimates import Density, Trace, density, trace
from seal_fast.curvature.lanczos import lanczos
from seal_fast.curvature.operator import HessianOperator
from seal_fast.curvature.power import power
from seal_fast.curvature.ritz import Eigenpairs, NotConverged, Spectrum

__all__ = [
    "Density",
    "Eigenpairs",
    "HessianOperator",
    "NotConverged",
    "Spectrum",
    "Trace",
    "density",
    "lanczos",
    "power",
    "trace",
]
