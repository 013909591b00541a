"""The ends of a symmetric operator's spectrum by the Lanczos method with full reorthogonalisation.

Lanczos 1950; Parlett, The Symmetric Eigenvalue Problem, chapter 13. All dot products are float64, so the projected
matrix's entries v_i . H v_j are, and its eigenvalues are Rayleigh quotients of the Ritz vectors. When the basis is full
it is restarted from the wanted Ritz vectors (thick restart: Wu and Simon, SIAM J. Matrix Anal. Appl. 22, 2000).
"""

from __future__ import annotations

import torch
from torch import Tensor

from seal_fast.curvature.basis import Basis
from seal_fast.curvature.ritz import Eigenpairs, NotConverged, Spectrum, Symmetric, Watch, error_estimate, precise


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

    A run from one vector sees one copy of an eigenvalue that is exactly repeated; where the space closes, it goes on
    from a new random vector and finds the others.

    Args:
        operator: the symmetric operator.
        top: how many of the algebraically largest.
        bottom: how many of the algebraically smallest.
        tol: relative error asked for (see `ritz.precise`), as estimated from residual and gap.
        start: [n], for the Krylov space to begin with, such as the gradient; a tenth of random is mixed in.
        vectors: give the eigenvectors too.
        max_hvps: products to spend at most.
        basis: vectors to keep at most.
        seed: of the random vectors.
        watch: told of the progress after each product; may stop it.

    Raises:
        NotConverged: the products were spent; the exception carries what there is.
        ValueError: more eigenvalues are asked for than there are, or than the basis can hold.
    """
    n = operator.shape[0]
    wanted = top + bottom
    if not 1 <= wanted <= n:
        raise ValueError(f"{top} top and {bottom} bottom eigenvalues asked for: the operator has {n}")
    if basis < wanted + 8:
        raise ValueError(f"a basis of {basis} vectors is too small for {wanted} eigenvalues: allow {wanted + 8}")
    draw = torch.Generator().manual_seed(seed)
    space = Basis(n, operator.dtype, operator.device)
    projected = torch.zeros(0, 0, dtype=torch.float64)
    closed, leak = 0, 0.0  # vectors in invariant subspaces that the run has left behind, and how far from invariant
    closing = 1e-5 if operator.dtype == torch.float32 else 1e-7  # of the largest Ritz value: rounding lies below
    hvps = 0
    vector = _direction(n, draw, operator.device)
    if start is not None and (length := float(start.double().norm())) > 0:
        vector = start.double() / length + 0.1 * vector
    vector /= vector.norm()

    while True:
        space.append(vector)
        vector = space.rows[-1].double()  # as it was rounded
        product = operator.multiply(vector[None])[0]
        hvps += 1
        column = space.orthogonalise(product).cpu()
        projected = _bordered(projected, column)
        theta, s = torch.linalg.eigh(projected)
        scale = float(theta.abs().max())
        rest = float(product.norm())
        count = len(space)
        exhausted = count >= n
        ended = rest <= closing * scale
        if exhausted or ended:
            leak, rest = max(leak, 0.0 if exhausted else rest), 0.0
        residuals = ((rest * s[-1]).abs() + leak).tolist()
        ritz = theta.tolist()
        ends = _ends(count, top, bottom)
        values, distances = [ritz[i] for i in ends], [residuals[i] for i in ends]
        errors = [error_estimate(ritz[i], residuals[i], ritz[:i] + ritz[i + 1 :]) for i in ends]
        stopped = bool(watch and watch(hvps, values, errors))
        enough = count >= wanted and precise(values, distances, errors, tol, scale)
        if enough and (closed or ended):
            enough = _nothing_new(theta, projected[closed:, closed:], rest, closed, top, bottom, tol, scale)
        if enough or exhausted or stopped or hvps >= max_hvps:
            break
        if ended:
            closed = count
            vector = _direction(n, draw, operator.device)
            space.orthogonalise(vector)
        else:
            vector = product
        if count >= basis:
            keep = _kept(count, top, bottom, basis)
            space.replace(space.combine(s[:, keep].to(operator.device)).to(operator.dtype))
            projected, closed = torch.diag(theta[keep]), 0 if closed == 0 else len(keep)
        vector /= vector.norm()

    order = [count - 1 - i for i in range(min(top, max(0, count - bottom)))], list(range(min(bottom, count)))
    found = []
    for chosen in order:
        made = space.combine(s[:, chosen].to(operator.device)) if vectors and chosen else None
        estimates = [errors[ends.index(i)] for i in chosen]
        found.append(Eigenpairs([ritz[i] for i in chosen], [residuals[i] for i in chosen], estimates, made))
    spectrum = Spectrum(found[0], found[1], hvps, enough or exhausted)
    if not (spectrum.converged or stopped):
        raise NotConverged(spectrum, tol)
    return spectrum


def _direction(n: int, draw: torch.Generator, device: torch.device) -> Tensor:
    vector = torch.randn(n, generator=draw, dtype=torch.float64).to(device)
    return vector / vector.norm()


def _bordered(matrix: Tensor, column: Tensor) -> Tensor:
    """The symmetric matrix with one more row and column."""
    grown = torch.zeros(len(column), len(column), dtype=torch.float64)
    grown[:-1, :-1] = matrix
    grown[-1, :] = column
    grown[:, -1] = column
    return grown


def _ends(count: int, top: int, bottom: int) -> list[int]:
    """Positions of the wanted among `count` Ritz values in rising order; an end that overlaps the other counts once."""
    return sorted({*range(min(bottom, count)), *range(max(0, count - top), count)})


def _kept(count: int, top: int, bottom: int, basis: int) -> list[int]:
    """Ritz vectors that survive a restart: the wanted, and half of the basis next to them."""
    spare = basis // 2 - top - bottom
    more_top = spare * top // (top + bottom)
    return _ends(count, top + max(0, more_top) if top else 0, bottom + max(0, spare - more_top) if bottom else 0)


def _nothing_new(
    theta: Tensor, newest: Tensor, rest: float, closed: int, top: int, bottom: int, tol: float, scale: float
) -> bool:
    """After a closed subspace: whether the newest one has converged to eigenvalues beyond the wanted.

    Its Ritz values are those of its own block of the projected matrix; those of the whole may be equal to others.
    """
    if closed == 0 or not len(newest):
        return False
    own, s = torch.linalg.eigh(newest)
    slack = tol * 1e-3 * scale
    for size, extreme, limit, sign in ((top, -1, len(theta) - top, 1.0), (bottom, 0, bottom - 1, -1.0)):
        if size == 0:
            continue
        value, residual = float(own[extreme]), rest * abs(float(s[-1, extreme]))
        beyond = sign * (value - float(theta[limit])) <= slack
        if not beyond or residual > tol * max(abs(value), 1e-3 * scale):
            return False
    return True
