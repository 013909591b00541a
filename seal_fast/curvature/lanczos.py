"""The ends of a symmetric operator's spectrum by the Lanczos method with full reorthogonalisation.

Lanczos 1950; Parlett, The Symmetric Eigenvalue Problem, chapter 13. All dot products are float64, so the projected
matrix's entries v_i . H v_j are, and its eigenvalues are Rayleigh quotients of the Ritz vectors. When the basis is full
it is restarted from the wanted Ritz vectors (thick restart: Wu and Simon, SIAM J. Matrix Anal. Appl. 22, 2000).
"""

from __future__ import annotations

import torch
from torch import Tensor

from seal_fast.curvature import ritz
from seal_fast.curvature.basis import Basis
from seal_fast.curvature.ritz import Eigenpairs, NotConverged, Spectrum, Symmetric, Watch


class Krylov:
    """An orthonormal basis with the operator's projection onto it, grown by one product at a time.

    Attributes:
        space: the basis.
        projected: v_i . H v_j, float64 [count, count].
        coupling: v . H v_i for the next vector v, float64 [count]; the next product must confirm it.
    """

    def __init__(self, operator: Symmetric) -> None:
        self.operator = operator
        self.space = Basis(operator.shape[0], operator.dtype, operator.device)
        self.projected = torch.zeros(0, 0, dtype=torch.float64)
        self.coupling = torch.zeros(0, dtype=torch.float64)
        self.leak = 0.0  # the largest remainder of a product that was dropped

    def step(self, vector: Tensor) -> tuple[Tensor, float]:
        """Add a float64 vector [n] of length one; returns the rest of its product, orthogonal to the basis, and |rest|.

        Raises:
            RunError: the operator is not symmetric.
        """
        self.space.append(vector)
        rest = self.operator.multiply(self.space.rows[-1:].double())[0]  # of the vector as it was rounded
        column = self.space.orthogonalise(rest).cpu()
        length, size = float(rest.norm()), len(column)
        grown = torch.zeros(size, size, dtype=torch.float64)
        grown[:-1, :-1] = self.projected
        grown[-1, :] = grown[:, -1] = column
        scale = max(length, float(torch.linalg.matrix_norm(grown, 2)))
        ritz.check_symmetry(column[:-1], self.coupling, scale, self.operator.dtype)
        self.projected = grown
        self.coupling = torch.zeros(size, dtype=torch.float64)
        self.coupling[-1] = length
        return rest, length

    def close(self, remainder: float) -> None:
        """Take the space for invariant: the next vector is not the rest of the last product, which is dropped."""
        self.leak = max(self.leak, remainder)
        self.coupling = torch.zeros_like(self.coupling)

    def restart(self, theta: Tensor, s: Tensor, keep: list[int]) -> None:
        """Replace the basis by the Ritz vectors `keep`, given the projection's eigenvalues and eigenvectors."""
        vectors = self.space.combine(s[:, keep].to(self.operator.device))
        self.space.replace(vectors.to(self.operator.dtype))
        self.projected, self.coupling = torch.diag(theta[keep]), self.coupling @ s[:, keep]


def lanczos(
    operator: Symmetric,
    top: int = 1,
    bottom: int = 0,
    *,
    tol: float = 1e-3,
    start: Tensor | None = None,
    vectors: bool = False,
    max_hvps: int = 300,
    basis: int = 64,
    seed: int = 0,
    watch: Watch | None = None,
) -> Spectrum:
    """The `top` largest and `bottom` smallest eigenvalues (most negative first), both from one Krylov space.

    A run from one vector finds one copy of an eigenvalue that is exactly repeated; where the space closes, the run
    continues from a new random vector and finds the others.

    Args:
        tol: relative error asked for (see `ritz.precise`), as estimated from residual and gap.
        start: [n], the first vector of the Krylov space, such as the gradient; a tenth of a random one is added.
        vectors: return the eigenvectors too.
        basis: the largest number of stored vectors.
        watch: called after each product; may stop the run.

    Raises:
        NotConverged: the products were spent; the exception carries the result so far.
        RunError: the operator is not symmetric.
        ValueError: more eigenvalues are asked for than there are, or than the basis can hold.
    """
    ritz.check_ends(operator, top, bottom)
    n, wanted = operator.shape[0], top + bottom
    if basis < wanted + 8:
        raise ValueError(f"a basis of {basis} vectors is too small for {wanted} eigenvalues: allow {wanted + 8}")
    draw = torch.Generator().manual_seed(seed)
    krylov = Krylov(operator)
    closed = 0  # vectors in invariant subspaces, before the newest space
    closing = 1e-5 if operator.dtype == torch.float32 else 1e-7  # of the largest Ritz value: rounding lies below
    hvps = 0
    vector = _direction(n, draw, operator.device)
    if start is not None and (length := float(start.double().norm())) > 0:
        vector = start.double() / length + 0.1 * vector

    while True:
        vector, rest = krylov.step(vector / vector.norm())
        hvps += 1
        theta, s = torch.linalg.eigh(krylov.projected)
        scale, count = float(theta.abs().max()), len(krylov.space)
        exhausted, ended = count >= n, rest <= closing * scale
        if exhausted or ended:
            krylov.close(0.0 if exhausted else rest)
            rest = 0.0
        residuals = (rest * s[-1]).abs() + krylov.leak
        errors, ends = ritz.error_estimates(theta, residuals), _ends(count, top, bottom)
        stopped = bool(watch and watch(hvps, theta[ends].tolist(), errors[ends].tolist()))
        enough = count >= wanted and ritz.precise(theta[ends], residuals[ends], errors[ends], tol, scale)
        if enough and (closed or ended):
            newest = krylov.projected[closed:, closed:]
            enough = _nothing_new(theta, newest, rest, closed, top, bottom, tol, scale)
        if enough or exhausted or stopped or hvps >= max_hvps:
            break
        if ended:
            closed = count
            vector = _direction(n, draw, operator.device)
            krylov.space.orthogonalise(vector)
        if count >= basis:
            keep = _restarted(count, top, bottom, basis)
            krylov.restart(theta, s, keep)
            closed = len(keep) if closed else 0

    def pairs(chosen: list[int]) -> Eigenpairs:
        combined = krylov.space.combine(s[:, chosen].to(operator.device)) if vectors and chosen else None
        return Eigenpairs(theta[chosen].tolist(), residuals[chosen].tolist(), errors[chosen].tolist(), combined)

    falling = [count - 1 - i for i in range(min(top, max(0, count - bottom)))]
    spectrum = Spectrum(pairs(falling), pairs(list(range(min(bottom, count)))), hvps, enough or exhausted)
    if not (spectrum.converged or stopped):
        raise NotConverged(spectrum, tol)
    return spectrum


def _direction(n: int, draw: torch.Generator, device: torch.device) -> Tensor:
    vector = torch.randn(n, generator=draw, dtype=torch.float64).to(device)
    return vector / vector.norm()


def _ends(count: int, top: int, bottom: int) -> list[int]:
    """Positions of the wanted among `count` rising Ritz values; a position that both ends share is there once."""
    return sorted({*range(min(bottom, count)), *range(max(0, count - top), count)})


def _restarted(count: int, top: int, bottom: int, basis: int) -> list[int]:
    """Positions of the Ritz vectors to restart from: the wanted, and half of the basis next to them."""
    spare = basis // 2 - top - bottom
    more_top = spare * top // (top + bottom)
    return _ends(count, top + max(0, more_top) if top else 0, bottom + max(0, spare - more_top) if bottom else 0)


def _nothing_new(
    theta: Tensor, newest: Tensor, rest: float, closed: int, top: int, bottom: int, tol: float, scale: float
) -> bool:
    """After a closed subspace: whether the newest one has converged without an eigenvalue among the wanted.

    Its Ritz values are those of its own block of the projection; those of the whole may belong to older subspaces.
    """
    if closed == 0 or not len(newest):
        return False
    values, s = torch.linalg.eigh(newest)
    slack = tol * 1e-3 * scale
    for size, extreme, limit, sign in ((top, -1, len(theta) - top, 1.0), (bottom, 0, bottom - 1, -1.0)):
        if size == 0:
            continue
        value, residual = float(values[extreme]), rest * abs(float(s[-1, extreme]))
        beyond = sign * (value - float(theta[limit])) <= slack
        if not beyond or residual > tol * max(abs(value), 1e-3 * scale):
            return False
    return True
