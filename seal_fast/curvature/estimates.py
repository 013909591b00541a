"""Trace and spectral density of a symmetric operator from products with random vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from seal_fast.curvature.basis import Basis
from seal_fast.curvature.ritz import Symmetric

Stop = Callable[[int], bool | None]
"""Called with the products spent so far; True stops the estimate."""


@dataclass
class Trace:
    """Hutchinson's estimate; stderr is the standard error of the mean over the probes, hvps their number."""

    value: float
    stderr: float
    hvps: int


def trace(operator: Symmetric, probes: int = 32, *, block: int = 1, seed: int = 0, stop: Stop | None = None) -> Trace:
    """The trace from  mean of v . H v  over random signs v (Hutchinson, Communications in Statistics, 1990).

    Args:
        operator: the symmetric operator.
        probes: random vectors.
        block: vectors that go through the network at once.
        seed: of the vectors.
        stop: told of the progress; may stop it.

    Raises:
        ValueError: fewer than two probes, which have no standard error.
    """
    if probes < 2:
        raise ValueError(f"{probes} probes: two at least, or there is no standard error")
    draw = torch.Generator().manual_seed(seed)
    samples: list[float] = []
    while len(samples) < probes:
        signs = _signs(min(block, probes - len(samples)), operator.shape[0], draw).to(operator.device)
        samples += (signs * operator.multiply(signs)).sum(1).tolist()
        if stop and stop(len(samples)) and len(samples) >= 2:
            break
    values = torch.tensor(samples, dtype=torch.float64)
    return Trace(float(values.mean()), float(values.std()) / math.sqrt(len(samples)), len(samples))


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
        operator: the symmetric operator.
        probes: random vectors, each with a Krylov space of its own.
        steps: products for each.
        seed: of the vectors.
        stop: told of the progress; may stop it after the probe in hand.

    Raises:
        ValueError: probes or steps below one.
    """
    if probes < 1 or steps < 1:
        raise ValueError(f"{probes} probes of {steps} steps: at least one each")
    n = operator.shape[0]
    steps = min(steps, n)
    draw = torch.Generator().manual_seed(seed)
    nodes, weights = torch.zeros(probes, steps, dtype=torch.float64), torch.zeros(probes, steps, dtype=torch.float64)
    hvps = done = 0
    for probe in range(probes):
        vector = _signs(1, n, draw)[0].to(operator.device) / math.sqrt(n)
        space = Basis(n, operator.dtype, operator.device)
        diagonal: list[float] = []
        beside: list[float] = []
        interrupted = False
        for _ in range(steps):
            space.append(vector)
            product = operator.multiply(space.rows[-1:].double())[0]
            hvps += 1
            diagonal.append(float(space.orthogonalise(product)[-1]))
            rest = float(product.norm())
            if rest <= 1e-10 * max(map(abs, diagonal)) or (interrupted := bool(stop and stop(hvps))):
                break  # the space is closed: the quadrature is exact
            beside.append(rest)
            vector = product / rest
        if interrupted and done:
            break
        count = len(diagonal)
        off = torch.tensor(beside[: count - 1], dtype=torch.float64)
        theta, s = torch.linalg.eigh(
            torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
        )
        nodes[probe, :count], weights[probe, :count] = theta, s[0].square()
        done += 1
        if interrupted:
            break
    return Density(nodes[:done], weights[:done], n, hvps)


def _signs(count: int, length: int, draw: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (count, length), generator=draw).double().mul_(2).sub_(1)
