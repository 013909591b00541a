"""How much the loss rises near a network's weights: in the worst case within a radius, and on average under noise.

With c = 1, or c = |w| where it is adaptive, which makes it independent of the scale of each weight (Kwon et al., "ASAM:
Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks", ICML 2021):

    worst case     max of L(w + d) - L(w) over |d / c| <= rho         (Foret et al., "SAM", ICLR 2021, section 2)
    average case   mean of L(w + d) - L(w) over d ~ N(0, sigma^2 c^2)

both in the form of Andriushchenko et al., "A Modern Look at the Relationship between Sharpness and Generalization",
ICML 2023, section 3, without their normalisation of the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from seal_fast.curvature.operator import full_float32

Weights = Mapping[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits [N, C] and labels [N] to the mean loss."""
Batch = tuple[Tensor, Tensor]


class Reach(NamedTuple):
    """A radius rho or a standard deviation sigma, absolute or relative to each weight (adaptive)."""

    size: float
    adaptive: bool


class Landscape:
    """The mean loss of a batch as a function of the weights.

    Args:
        model: in eval mode; nothing of it is changed.
        loss: of the logits, which it gets in float64, because the differences are small.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.model, self.loss = model, loss
        self.weights = {name: p.detach() for name, p in model.named_parameters()}

    def value(self, weights: Weights, batch: Batch) -> float:
        """The loss."""
        with torch.no_grad():
            return float(self._loss(weights, batch))

    def gradient(self, weights: Weights, batch: Batch) -> tuple[float, dict[str, Tensor]]:
        """The loss and its gradient."""
        leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
        with torch.enable_grad():
            loss = self._loss(leaves, batch)
            found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return float(loss.detach()), dict(zip(leaves, found, strict=True))

    def moved(self, direction: Weights, length: float, adaptive: bool) -> dict[str, Tensor]:
        """The weights plus `length` c times a direction."""
        return {
            name: w + length * (w.abs() * direction[name] if adaptive else direction[name])
            for name, w in self.weights.items()
        }

    def _loss(self, weights: Weights, batch: Batch) -> Tensor:
        images, labels = batch
        return self.loss(functional_call(self.model, dict(weights), (images,)).double(), labels)


@full_float32()
def worst_case(
    landscape: Landscape, batch: Batch, reaches: Sequence[Reach], steps: int = 3, seed: int = 0
) -> list[float]:
    """The largest rise of a batch's loss that is found within each radius, at least 0.

    Each step goes to the point of the sphere where the linear approximation of the loss is largest, the first to that
    of SAM: d / c = rho c g / |c g|, g the gradient at the point before. On a convex loss no step leads down (the
    generalised power method: Journee et al., JMLR 2010, section 3); elsewhere the largest loss on the way counts.

    Args:
        steps: points on each sphere.
        seed: of a random first direction, where the gradient is 0.
    """
    here, first = landscape.gradient(landscape.weights, batch)
    rises = []
    for rho, adaptive in reaches:
        gradient, best = first, here
        for step in range(steps):
            ascent = {n: landscape.weights[n].abs() * g for n, g in gradient.items()} if adaptive else gradient
            if not (length := _norm(ascent)):
                ascent = _normal(landscape.weights, seed)
                length = _norm(ascent)
            at = landscape.moved(ascent, rho / length, adaptive)
            if step < steps - 1:
                value, gradient = landscape.gradient(at, batch)
            else:
                value = landscape.value(at, batch)
            best = value if math.isnan(value) else max(best, value)
        rises.append(best - here)
    return rises


@full_float32()
def average_case(
    landscape: Landscape, batches: Sequence[Batch], reaches: Sequence[Reach], draws: int = 3, seed: int = 0
) -> Tensor:
    """The rise of the summed loss of all images under noise of each size, float64 [draws, reaches].

    A draw is the mean over +d and -d, in which the odd orders of the loss cancel. The draws are independent, and the
    same for all sizes, batches and networks of the same shape.
    """
    rises = torch.zeros(draws, len(reaches), dtype=torch.float64)
    here = [landscape.value(landscape.weights, batch) for batch in batches]
    for draw in range(draws if batches else 0):
        direction = _normal(landscape.weights, (seed << 20) + draw)
        for i, (sigma, adaptive) in enumerate(reaches):
            for length in (sigma, -sigma):
                at = landscape.moved(direction, length, adaptive)
                for batch, before in zip(batches, here, strict=True):
                    rises[draw, i] += len(batch[1]) * (landscape.value(at, batch) - before) / 2
    return rises


def _norm(tensors: Weights) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors.values()))


def _normal(like: Weights, seed: int) -> dict[str, Tensor]:
    """Standard normal tensors, the same on every device."""
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(w.shape, generator=draw).to(w) for name, w in like.items()}
