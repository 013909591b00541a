"""The ends of a symmetric operator's spectrum by block power iteration with Rayleigh-Ritz.

Subspace iteration: Parlett, The Symmetric Eigenvalue Problem, chapter 14. The whole block goes through the network at
once. With a block of one vector it is the classic power iteration. It finds repeated eigenvalues, converges like
(next eigenvalue / wanted eigenvalue)^products, and is what other tools do; the Lanczos method needs fewer products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seal_fast.curvature.ritz import Eigenpairs, NotConverged, Spectrum, Symmetric, Watch, error_estimate, precise


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

    Args:
        operator: the symmetric operator.
        top: how many of the algebraically largest.
        bottom: how many of the algebraically smallest.
        tol: relative error asked for (see `ritz.precise`), as estimated from residual and gap.
        start: [n], the first vector of the block; the others are random.
        vectors: give the eigenvectors too.
        max_hvps: products to spend at most, over both ends.
        block: vectors that go through the network at once; default two more than wanted, one if one is wanted.
        seed: of the random vectors.
        watch: told of the progress after each iteration; may stop it.

    Raises:
        NotConverged: the products were spent; the exception carries what there is.
        ValueError: more eigenvalues are asked for than there are.
    """
    n = operator.shape[0]
    if not 1 <= top + bottom <= n:
        raise ValueError(f"{top} top and {bottom} bottom eigenvalues asked for: the operator has {n}")
    spectrum = Spectrum(Eigenpairs(), Eigenpairs(), 0, True)
    for count, sign in ((top, 1.0), (bottom, -1.0)):
        if count == 0:
            continue
        size = min(n, max(count, block or (1 if count == 1 else count + 2)))
        one = _Iteration(operator, count, sign, tol, watch, spectrum.hvps, max_hvps)
        pairs = one.run(_block(operator, size, start, seed), vectors)
        if sign > 0:
            spectrum.top = pairs
        else:
            spectrum.bottom = pairs
        spectrum.hvps = one.hvps
        spectrum.converged &= one.converged
        if one.stopped:
            return spectrum
    if not spectrum.converged:
        raise NotConverged(spectrum, tol)
    return spectrum


class _Iteration:
    """One end: the largest eigenvalues of  sign H + shift."""

    def __init__(
        self, operator: Symmetric, count: int, sign: float, tol: float, watch: Watch | None, hvps: int, max_hvps: int
    ) -> None:
        self.operator, self.count, self.sign, self.tol, self.watch = operator, count, sign, tol, watch
        self.hvps, self.max_hvps = hvps, max_hvps
        self.converged = self.stopped = False

    def run(self, x: Tensor, vectors: bool) -> Eigenpairs:
        shift, scale = 0.0, 0.0
        while True:
            product = self.sign * self.operator.multiply(x)
            self.hvps += len(x)
            theta, s = torch.linalg.eigh(x @ product.T)
            theta, s = theta.flip(0), s.flip(1)  # falling
            ritz, applied = s.T @ x, s.T @ product
            residuals = (applied - theta[:, None] * ritz).norm(dim=1).tolist()
            found = theta.tolist()
            scale = max(scale, float(theta.abs().max()))
            wanted = range(self.count)
            errors = [error_estimate(found[i], residuals[i], found[:i] + found[i + 1 :]) for i in wanted]
            values = [self.sign * found[i] for i in wanted]
            self.converged = (
                precise(values, residuals[: self.count], errors, self.tol, scale) or len(x) == self.operator.shape[0]
            )
            self.stopped = bool(self.watch and self.watch(self.hvps, values, errors))
            if self.converged or self.stopped or self.hvps + len(x) > self.max_hvps:
                chosen = ritz[: self.count].clone() if vectors else None
                return Eigenpairs(values, residuals[: self.count], errors, chosen)
            # Power iteration follows the largest magnitude: shift so that the wanted end has it.
            if -found[-1] > found[self.count - 1] + shift + shift:
                shift = max(shift, -found[-1])
            x = torch.linalg.qr((applied + shift * ritz).T).Q.T.contiguous()


def _block(operator: Symmetric, size: int, start: Tensor | None, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(size, operator.shape[0], generator=draw, dtype=torch.float64).to(operator.device)
    if start is not None:
        x[0] = start.double()
    return torch.linalg.qr(x.T).Q.T.contiguous()
