"""The ends of a symmetric operator's spectrum by block power iteration with Rayleigh-Ritz.

Subspace iteration: Parlett, The Symmetric Eigenvalue Problem, chapter 14. A block of one vector gives the classic power
iteration. It finds repeated eigenvalues and converges like (next eigenvalue / wanted eigenvalue)^products; the Lanczos
method needs fewer products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seal_fast.curvature import ritz
from seal_fast.curvature.ritz import Eigenpairs, NotConverged, Spectrum, Symmetric, Watch


def power(
    operator: Symmetric,
    top: int = 1,
    bottom: int = 0,
    *,
    tol: float = 1e-3,
    start: Tensor | None = None,
    vectors: bool = False,
    max_hvps: int = 1000,
    block: int | None = None,
    seed: int = 0,
    watch: Watch | None = None,
) -> Spectrum:
    """The `top` largest and `bottom` smallest eigenvalues (most negative first), one end after the other.

    `tol`, `vectors` and `seed` are those of `lanczos`.

    Args:
        start: [n], the first vector of the block; the others are random.
        max_hvps: the largest number of products, over both ends.
        block: vectors that go through the network at once; default two more than wanted, one if one is wanted.
        watch: called after each iteration; may stop the run.

    Raises:
        NotConverged: the products were spent; the exception carries the result so far.
        RunError: the operator is not symmetric.
        ValueError: more eigenvalues are asked for than there are.
    """
    ritz.check_ends(operator, top, bottom)
    spectrum = Spectrum()

    def iterate(count: int, sign: float) -> tuple[Eigenpairs, bool]:
        """The largest eigenvalues of  sign H + shift, and whether `watch` stopped the run."""
        size = min(operator.shape[0], max(count, block or (1 if count == 1 else count + 2)))
        x = _block(operator, size, start, seed)
        shift, scale = 0.0, 0.0
        before: tuple[Tensor, Tensor] | None = None
        while True:
            product = sign * operator.multiply(x)
            spectrum.hvps += size
            if before is not None:
                forward, backward = x @ before[1].T, product @ before[0].T
                ritz.check_symmetry(forward, backward, float(forward.abs().max()), operator.dtype)
            before = x, product
            theta, s = torch.linalg.eigh(x @ product.T)
            theta, s = theta.flip(0), s.flip(1)  # falling
            y, applied = s.T @ x, s.T @ product
            residuals = (applied - theta[:, None] * y).norm(dim=1)
            scale = max(scale, float(theta.abs().max()))
            found = sign * theta[:count], residuals[:count], ritz.error_estimates(theta, residuals)[:count]
            values, distances, errors = (numbers.tolist() for numbers in found)
            done = ritz.precise(*found, tol, scale) or size == operator.shape[0]
            stopped = bool(watch and watch(spectrum.hvps, values, errors))
            if done or stopped or spectrum.hvps + size > max_hvps:
                spectrum.converged &= done
                return Eigenpairs(values, distances, errors, y[:count].clone() if vectors else None), stopped
            # Power iteration converges to the largest magnitude: shift so that the wanted end has it.
            smallest, last = float(theta[-1]), float(theta[count - 1])
            if -smallest > last + 2 * shift:
                shift = max(shift, -smallest)
            x = torch.linalg.qr((applied + shift * y).T).Q.T.contiguous()

    stopped = False
    if top:
        spectrum.top, stopped = iterate(top, 1.0)
    if bottom and not stopped:
        spectrum.bottom, stopped = iterate(bottom, -1.0)
    if not (spectrum.converged or stopped):
        raise NotConverged(spectrum, tol)
    return spectrum


def _block(operator: Symmetric, size: int, start: Tensor | None, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(size, operator.shape[0], generator=draw, dtype=torch.float64).to(operator.device)
    if start is not None:
        x[0] = start.double()
    return torch.linalg.qr(x.T).Q.T.contiguous()
