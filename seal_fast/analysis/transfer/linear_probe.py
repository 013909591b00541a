"""Multinomial logistic regression on frozen features, to convergence, along a path of L2 penalties.

The objective over weights W [C, D] and bias b [C], with rows x_i and labels y_i:

    mean_i cross_entropy(W x_i + b, y_i) + l2 / 2 * |W|^2          (the bias is not penalised)

scikit-learn's LogisticRegression with C = 1 / (l2 * n) has the same optimum. The solver is `torch.optim.LBFGS` in
float64. The features are centred and rotated onto their principal axes, where the Hessian is nearly diagonal,
a_c * variance_j + l2 with a_c = mean p_c (1 - p_c); every unknown is scaled by the root of that diagonal, so that
L-BFGS starts near the inverse Hessian. Strong convexity turns the gradient's norm into a bound on the distance from
the optimum, and the search ends where that bound is small enough.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from seal_fast.utils.errors import RunError


@dataclass(frozen=True)
class Solution:
    """An optimum.

    Attributes:
        weight: float64 [C, D].
        bias: float64 [C]; its mean, which changes no probability, is 0.
        l2: the penalty.
        loss: the objective there.
        gap: bound on the loss above the optimum in W: |gradient|^2 / (2 l2), by strong convexity. The bias has no
            penalty to bound it; its gradient counts like the weights'.
    """

    weight: Tensor
    bias: Tensor
    l2: float
    loss: float
    gap: float

    def logits(self, features: Tensor) -> Tensor:
        """Features [n, D] to float64 [n, C]."""
        return torch.addmm(self.bias, features.double(), self.weight.T)


class _Reached(Exception):
    """The point just evaluated is within the tolerance; the parameters hold it."""


def fit_path(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    l2: Sequence[float],
    *,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
) -> list[Solution]:
    """The optimum at each penalty, each search starting at the optimum before.

    Args:
        features: [n, D], any floating type.
        labels: int64 [n].
        num_classes: C.
        l2: penalties above 0; from large to small is the quickest order.
        tolerance: of `Solution.gap`.

    Raises:
        RunError: an optimum is not reached, or features are not finite.
    """
    if not torch.isfinite(features).all():
        raise RunError("the features are NaN or infinite: the network that made them has diverged")
    mean = features.double().mean(0)
    centred = features.double() - mean
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    rotated = torch.cat([centred @ axes, torch.ones_like(centred[:, :1])], 1)  # the last column is the bias's
    variances = torch.cat([variances.clamp(min=0), variances.new_ones(1)])
    point = torch.zeros(num_classes, len(variances), dtype=torch.float64, device=features.device)
    solutions = []
    for strength in l2:
        point, loss, gap = _minimise(rotated, labels, variances, point, strength, tolerance, max_iterations)
        weight = point[:, :-1] @ axes.T
        bias = point[:, -1] - weight @ mean
        solutions.append(Solution(weight, bias - bias.mean(), strength, loss, gap))
    return solutions


def _minimise(
    rotated: Tensor,
    labels: Tensor,
    variances: Tensor,
    start: Tensor,
    strength: float,
    tolerance: float,
    max_iterations: int,
) -> tuple[Tensor, float, float]:
    """The optimum [C, D + 1], its loss and its gap."""
    penalty = torch.full_like(variances, strength)
    penalty[-1] = 0
    probability = torch.softmax(rotated @ start.T, 1)
    confidence = (probability * (1 - probability)).mean(0)[:, None]
    scale = (confidence * variances + penalty + 1e-12).rsqrt()
    unknown = (start / scale).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [unknown],
        max_iter=max_iterations,
        max_eval=100 * max_iterations,
        history_size=10,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )
    loss, gap = float("nan"), float("inf")

    def objective() -> float:
        nonlocal loss, gap
        optimizer.zero_grad()
        point = unknown * scale
        value = F.cross_entropy(rotated @ point.T, labels) + (penalty * point.square()).sum() / 2
        value.backward()
        assert unknown.grad is not None
        loss, gap = value.item(), (unknown.grad / scale).square().sum().item() / (2 * strength)
        if gap <= tolerance:
            raise _Reached
        return loss

    with contextlib.suppress(_Reached):
        optimizer.step(objective)
        raise RunError(
            f"the linear probe at L2 {strength:g} has not converged in {max_iterations} iterations "
            f"(it may be {gap:.1e} above the optimum); leave such small penalties out with --l2"
        )
    return (unknown * scale).detach(), loss, gap
