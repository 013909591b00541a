"""Trace and spectral density of a symmetric operator from products with random vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from seal_fast.curvature.basis import Basis
from seal_fast.curvature.lanczos import Krylov
from seal_fast.curvature.ritz import Eigenpairs, Symmetric

Stop = Callable[[int], bool | None]
"""Called with the products spent so far; True stops the estimate."""


@dataclass
class Trace:
    """An estimate of the trace.

    Attributes:
        value: the estimate.
        stderr: standard error of the mean over the probes.
        half: half the width of the 95 % confidence interval by Student's t, for value +- half.
        probes: random vectors that the mean is over.
        known: dimensions of the subspace whose part of the trace is exact.
    """

    value: float
    stderr: float
    half: float
    probes: int
    known: int = 0


def trace(
    operator: Symmetric,
    probes: int = 32,
    *,
    known: Eigenpairs | None = None,
    block: int = 1,
    seed: int = 0,
    stop: Stop | None = None,
) -> Trace:
    """The trace by Hutch++ (Meyer, Musco, Musco and Woodruff, SOSA 2021, algorithm 1).

    The trace on a subspace is exact; that of the complement is the mean of  v . H v  over random signs v projected onto
    it (Hutchinson, Communications in Statistics, 1990). The subspace has a third of `probes` dimensions or more: the
    known eigenvectors, and if they are fewer a sketch, which is H times random signs. The estimate is unbiased for any
    orthonormal known vectors, converged or not.

    Args:
        probes: products to spend; a dimension of the sketch takes two.
        known: Ritz values with their orthonormal vectors from one subspace, such as one end of a `Spectrum`.
        block: vectors that go through the network at once.
        stop: called after each block; may stop the estimate.

    Raises:
        ValueError: fewer than two probes, which have no standard error, or the known vectors are not orthonormal.
    """
    from scipy.special import stdtrit

    if probes < 2:
        raise ValueError(f"{probes} probes: at least two are needed for a standard error")
    draw, known, n = torch.Generator().manual_seed(seed), known or Eigenpairs(), operator.shape[0]
    vectors = torch.empty(0, n, dtype=torch.float64) if known.vectors is None else known.vectors
    identity = torch.eye(len(known.values), dtype=torch.float64, device=vectors.device)
    if len(vectors) != len(identity) or not torch.allclose(vectors @ vectors.T, identity, rtol=0, atol=1e-5):
        raise ValueError("known eigenvalues need their eigenvectors, and these must be orthonormal")
    space = Basis(n, operator.dtype, operator.device)
    for vector in vectors:
        space.append(vector)
    spent, stopped = 0, False

    def multiply(rows: Tensor) -> Tensor:
        nonlocal spent, stopped
        products = operator.multiply(rows)
        spent += len(rows)
        stopped = bool(stop and stop(spent))
        return products

    exact, sketch = sum(known.values), max(0, min(probes // 3 - len(space), (probes - 2) // 2))
    for start in range(0, sketch, block):
        first = len(space)
        for image in multiply(_signs(min(block, sketch - start), n, draw).to(operator.device)):
            length = float(image.norm())
            space.orthogonalise(image)
            if (rest := float(image.norm())) > 1e-5 * length:  # else H has no further range
                space.append(image / rest)
        if len(space) > first:
            added = space.rows[first:].double()
            exact += float((added * multiply(added)).sum())
        if stopped:
            break
    samples: list[float] = []
    while len(samples) < 2 or (spent < probes and not stopped):
        v = _signs(min(block, max(probes - spent, 2 - len(samples))), n, draw).to(operator.device)
        for row in v:
            space.orthogonalise(row)
        samples += (v * multiply(v)).sum(1).tolist()
    values, count = torch.tensor(samples, dtype=torch.float64), len(samples)
    stderr = float(values.std()) / math.sqrt(count)
    half = float(stdtrit(count - 1, 0.975)) * stderr
    return Trace(exact + float(values.mean()), stderr, half, count, len(space))


@dataclass
class Density:
    """A spectral density as weighted points.

    nodes and weights are float64 [probes, steps]; the weights of a probe sum to 1. size is the operator's dimension,
    hvps the number of products spent.
    """

    nodes: Tensor
    weights: Tensor
    size: int
    hvps: int

    def moment(self, order: int) -> float:
        """The mean of eigenvalue^order over the spectrum; times `size` the trace of H^order."""
        return float((self.weights * self.nodes**order).sum(1).mean())

    def curve(self, grid: Tensor, sigma: float) -> Tensor:
        """The density on a grid of eigenvalues, each point widened to a Gaussian of standard deviation sigma."""
        z = (grid[:, None] - self.nodes.flatten()) / sigma
        bells = torch.exp(-0.5 * z * z) / (sigma * math.sqrt(2 * math.pi))
        return bells @ self.weights.flatten() / len(self.weights)


def density(
    operator: Symmetric, probes: int = 2, steps: int = 100, *, seed: int = 0, stop: Stop | None = None
) -> Density:
    """The spectral density by stochastic Lanczos quadrature (Ubaru, Chen and Saad, SIAM J. Matrix Anal. 38, 2017).

    Args:
        probes: random vectors, each with its own Krylov space.
        steps: products per probe.
        stop: called after each product; if it returns True, an unfinished probe is dropped unless it is the first.

    Raises:
        ValueError: probes or steps below one.
        RunError: the operator is not symmetric.
    """
    if probes < 1 or steps < 1:
        raise ValueError(f"{probes} probes of {steps} steps: at least one each")
    n = operator.shape[0]
    steps = min(steps, n)
    draw = torch.Generator().manual_seed(seed)
    nodes, weights = torch.zeros(2, probes, steps, dtype=torch.float64)
    hvps = done = 0
    stopped = False
    while done < probes and not stopped:
        vector, krylov = _signs(1, n, draw)[0].to(operator.device) / math.sqrt(n), Krylov(operator)
        for _ in range(steps):
            rest, length = krylov.step(vector)
            hvps += 1
            if length <= 1e-10 * float(krylov.projected.diagonal().abs().max()):
                break  # the space is invariant: the quadrature is exact
            if stopped := bool(stop and stop(hvps)):
                break
            vector = rest / length
        if stopped and done:
            break
        count = len(krylov.space)
        theta, s = torch.linalg.eigh(krylov.projected)
        nodes[done, :count], weights[done, :count] = theta, s[0].square()
        done += 1
    return Density(nodes[:done], weights[:done], n, hvps)


def _signs(count: int, length: int, draw: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (count, length), generator=draw).double().mul_(2).sub_(1)
