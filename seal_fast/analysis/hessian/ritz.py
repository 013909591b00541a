"""What every solver here gives back, how it judges convergence, and how it is watched and stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from seal_fast.errors import RunError


class Symmetric(Protocol):
    """What the solvers need of an operator: `HessianOperator`, or anything alike."""

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
    """Eigenvalues with their evidence.

    Attributes:
        values: Ritz values; the largest in falling order (`top`), or the smallest in rising order (`bottom`).
        residuals: |H y - theta y| of each Ritz pair, y of length one: an eigenvalue lies within that distance.
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

    top: Eigenpairs
    bottom: Eigenpairs
    hvps: int
    converged: bool


class NotConverged(RunError):
    """The products allowed were spent before the tolerance was reached; `spectrum` is what there is."""

    def __init__(self, spectrum: Spectrum, tol: float) -> None:
        self.spectrum = spectrum
        pairs = [spectrum.top, spectrum.bottom]
        worst = max(
            (error / max(abs(value), 1e-300) for p in pairs for value, error in zip(p.values, p.errors, strict=True)),
            default=float("inf"),
        )
        super().__init__(
            f"not converged after {spectrum.hvps} Hessian-vector products: the relative error is about {worst:.1e}, "
            f"asked for {tol:.1e}; raise --max-hvps or --tol, or use --solver lanczos"
        )


Watch = Callable[[int, list[float], list[float]], bool | None]
"""Called after each product with (products, wanted Ritz values, their error estimates); True stops the solver."""


class Judge:
    """Estimates how far Ritz values are from eigenvalues, from their residuals and from how they have moved.

    A residual r bounds the distance, and r^2 / gap does so much better where the neighbours are known (Parlett, The
    Symmetric Eigenvalue Problem, 11.7). But neighbours that have not shown yet make that gap too large. So it counts no
    less than what Aitken's extrapolation of the last three values says is still to come.
    """

    def __init__(self) -> None:
        self.history: list[list[float]] = []

    def errors(
        self, values: Sequence[float], residuals: Sequence[float], others: Sequence[Sequence[float]]
    ) -> list[float]:
        """Estimated |value - eigenvalue| of each wanted Ritz value, given its residual and the other Ritz values."""
        moved = [self._coming(i, value) for i, value in enumerate(values)]
        self.history = [*self.history[-1:], list(values)]
        found = []
        for value, residual, neighbours, coming in zip(values, residuals, others, moved, strict=True):
            gap = min((abs(value - other) for other in neighbours), default=0.0) - residual
            close = residual if gap <= residual else residual * residual / gap
            found.append(min(residual, max(close, coming)))
        return found

    def _coming(self, i: int, value: float) -> float:
        """What is left of a geometric series of steps."""
        if len(self.history) < 2 or any(i >= len(before) for before in self.history):
            return float("inf")
        first, second = self.history[0][i], self.history[1][i]
        step, before = abs(value - second), abs(second - first)
        return step * step / (before - step) if before > step else (float("inf") if step > 0 else 0.0)


def precise(values: list[float], errors: list[float], tol: float, scale: float) -> bool:
    """Whether all errors are within tol relative to their value, or to a thousandth of the largest one, `scale`."""
    return all(error <= tol * max(abs(value), 1e-3 * scale) for value, error in zip(values, errors, strict=True))
