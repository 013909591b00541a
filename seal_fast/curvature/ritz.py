"""The solvers' results, their tests of convergence and of symmetry, and how they are watched and stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from seal_fast.utils.errors import RunError


class Symmetric(Protocol):
    """A symmetric operator as the solvers need it; `HessianOperator` is one."""

    dtype: torch.dtype
    device: torch.device

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        ...

    def multiply(self, rows: Tensor) -> Tensor:
        """Products with the rows of a float64 [m, n], float64."""
        ...


@dataclass
class Eigenpairs:
    """Eigenvalues with their error estimates.

    Attributes:
        values: Ritz values; the largest in falling order (`top`), or the smallest in rising order (`bottom`).
        residuals: |H y - theta y| of each Ritz pair, y of length one: some eigenvalue lies within that distance.
        errors: estimated distance to the eigenvalue: the smaller of the residual and residual^2 / gap.
        vectors: float64 [count, n], or None if not asked for.
    """

    values: list[float] = field(default_factory=list)
    residuals: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    vectors: Tensor | None = None


@dataclass
class Spectrum:
    """The two ends of a spectrum, as far as they were asked for; hvps is the number of products spent."""

    top: Eigenpairs = field(default_factory=Eigenpairs)
    bottom: Eigenpairs = field(default_factory=Eigenpairs)
    hvps: int = 0
    converged: bool = True


class NotConverged(RunError):
    """The allowed products were spent before the tolerance was reached; `spectrum` holds the result so far."""

    def __init__(self, spectrum: Spectrum, tol: float) -> None:
        self.spectrum = spectrum
        pairs = [pair for end in (spectrum.top, spectrum.bottom) for pair in zip(end.values, end.errors, strict=True)]
        worst = max((error / max(abs(value), 1e-300) for value, error in pairs), default=float("inf"))
        super().__init__(
            f"not converged after {spectrum.hvps} Hessian-vector products: the relative error is about {worst:.1e}, "
            f"asked for {tol:.1e}; raise --max-hvps or --tol, or use --solver lanczos"
        )


Watch = Callable[[int, list[float], list[float]], bool | None]
"""Called after each product with (products, wanted Ritz values, their error estimates); True stops the solver."""


def check_ends(operator: Symmetric, top: int, bottom: int) -> None:
    """Refuse a number of eigenvalues that the operator does not have.

    Raises:
        ValueError: it is below one or above n.
    """
    n = operator.shape[0]
    if not 1 <= top + bottom <= n:
        raise ValueError(f"{top} top and {bottom} bottom eigenvalues asked for: the operator has {n}")


def check_symmetry(forward: Tensor, backward: Tensor, scale: float, dtype: torch.dtype) -> None:
    """Compare u . H v with v . H u for pairs of vectors of length one.

    On small ResNets rounding leaves differences below 1e-12 of the largest eigenvalue in float64 and near 1e-7 in
    float32; the thresholds, 1e-6 and 1.2e-4, leave room for larger networks.

    Args:
        forward: u . H v of the pairs.
        backward: v . H u of the same pairs.
        scale: the size of the largest eigenvalue seen.
        dtype: in which the products are computed.

    Raises:
        RunError: they differ by more than rounding.
    """
    difference = float((forward - backward).abs().max()) if forward.numel() else 0.0
    if difference > max(1e-6, 1000 * torch.finfo(dtype).eps) * scale:
        raise RunError(
            f"the Hessian-vector products are not symmetric (u.Hv and v.Hu differ by {difference / scale:.1e} of the "
            "largest eigenvalue), so their eigenvalues would be wrong: either the loss changes between products "
            "(random augmentation, dropout inside the loss, weights that are still trained), or torch's second "
            "derivative of an operation is wrong (known for parametrized weight_norm: remove it with "
            "remove_parametrizations first), or it overflows the precision (try float64)"
        )


def error_estimates(values: Tensor, residuals: Tensor) -> Tensor:
    """Estimated distances of Ritz values [m] to the eigenvalues, given the residuals [m].

    min(r, r^2 / gap), the gap to the nearest other Ritz value less r (Parlett, The Symmetric Eigenvalue Problem, 11.7).
    """
    if len(values) == 1:
        return residuals
    gaps = (values[:, None] - values).abs().fill_diagonal_(float("inf")).amin(1) - residuals
    return torch.where(gaps <= residuals, residuals, residuals.square() / gaps)


def precise(values: Tensor, residuals: Tensor, errors: Tensor, tol: float, scale: float) -> bool:
    """Whether all estimated errors are within `tol`, relative to their value or to a thousandth of `scale`.

    The gap is known only to eigenvalues that already appear among the Ritz values. The residuals, which need no gap,
    must therefore be small as well: below 0.15 sqrt(tol), 0.5 % at 1e-3. An eigenvalue closer to its neighbour than
    that may still be taken for it.
    """
    sizes = values.abs().clamp(min=1e-3 * scale)
    return bool(((errors <= tol * sizes) & (residuals <= 0.15 * tol**0.5 * sizes)).all())
