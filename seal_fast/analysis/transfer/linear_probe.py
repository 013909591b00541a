"""Multinomial logistic regression on frozen features, to convergence, along a path of L2 penalties.

The objective over weights W [C, D] and bias b [C], with rows x_i and labels y_i:

    mean_i cross_entropy(W x_i + b, y_i) + l2 / 2 * |W|^2          (the bias is not penalised)

It is strongly convex in W, so its optimum is the same whichever way leads there; scikit-learn's LogisticRegression
with C = 1 / (l2 * n) has the same one. The way taken here is L-BFGS in float64 (Nocedal and Wright, "Numerical
Optimization", 2nd edition, section 7.2) with turns that this problem offers:

- the features are centred and rotated onto their principal axes once for the whole path. There the Hessian is nearly
  diagonal, a_c * variance_j + l2 with a_c = mean p_c (1 - p_c), and its inverse is the L-BFGS matrix to start from;
- logits are linear along a search direction, so a line search costs no product with the features;
- the derivative along the direction is increasing, so the line search is root finding and never compares losses, whose
  differences drown in rounding near the optimum;
- the products with the features are the time, and in float32 they cost a fraction. They are taken in it while the
  gradient is far above its rounding; every optimum is then checked, and where need be finished, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seal_fast.utils.errors import RunError

HISTORY = 10
SLOPE = 0.1
ROUNDING = 16 * 2.0**-48  # squares of float32's relative rounding, with a margin for their accumulation


@dataclass(frozen=True)
class Solution:
    """An optimum.

    Attributes:
        weight: float64 [C, D].
        bias: float64 [C]; its mean, which changes nothing, is 0.
        l2: the penalty.
        loss: the objective there.
        gap: how much lower it could be in W at most: |gradient|^2 / (2 l2), by strong convexity.
        iterations: of L-BFGS; each is two products with the features.
    """

    weight: Tensor
    bias: Tensor
    l2: float
    loss: float
    gap: float
    iterations: int

    def logits(self, features: Tensor) -> Tensor:
        """Features [n, D] to float64 [n, C]."""
        return torch.addmm(self.bias, features.double(), self.weight.T)


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
        max_iterations: per penalty.

    Raises:
        RunError: an optimum is not reached, or features are not finite.
    """
    if not torch.isfinite(features).all():
        raise RunError("the features are NaN or infinite: the network that made them has diverged")
    problem = _Problem(features.double(), labels, num_classes)
    point = torch.zeros(num_classes, features.shape[1] + 1, dtype=torch.float64, device=features.device)
    solutions = []
    for penalty in l2:
        point, found = _minimise(problem, point, penalty, tolerance, max_iterations)
        solutions.append(found)
    return solutions


class _Problem:
    """Features on their principal axes with a constant 1 as last column, and what belongs to them."""

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int) -> None:
        self.count = len(features)
        self.mean = features.mean(0)
        centred = features - self.mean
        variances, self.axes = torch.linalg.eigh(centred.T @ centred / self.count)
        ones = torch.ones_like(centred[:, :1])
        self.exact = torch.cat([centred @ self.axes, ones], 1).T.contiguous()  # [D + 1, n]
        self.quick = self.exact.float()
        self.variances = torch.cat([variances.clamp(min=0), ones[0]])
        self.targets = torch.nn.functional.one_hot(labels, num_classes).T.double()  # [C, n], as all logits below

    def logits(self, point: Tensor, inputs: Tensor) -> Tensor:
        """[C, D + 1] to [C, n], the product taken in the precision of `inputs`."""
        return (point.to(inputs.dtype) @ inputs).double()

    def gradient(self, probability: Tensor, point: Tensor, penalty: Tensor, inputs: Tensor) -> Tensor:
        """Of the objective by the point, [C, D + 1], the product taken in the precision of `inputs`."""
        residual = (probability - self.targets) / self.count
        return (residual.to(inputs.dtype) @ inputs.T).double() + penalty * point

    def weights(self, rotated: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and bias for the features as they were."""
        weight = rotated[:, :-1] @ self.axes.T
        bias = rotated[:, -1] - weight @ self.mean
        return weight, bias - bias.mean()


def _minimise(
    problem: _Problem, point: Tensor, l2: float, tolerance: float, max_iterations: int
) -> tuple[Tensor, Solution]:
    penalty = torch.full_like(problem.variances, l2)
    penalty[-1] = 0
    rounding = ROUNDING * len(point) * problem.variances.sum().item() / (2 * l2)
    inputs = problem.quick
    logits = problem.logits(point, inputs)
    probability = torch.softmax(logits, 0)
    gradient = problem.gradient(probability, point, penalty, inputs)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    for iteration in range(max_iterations):
        if inputs is problem.quick and (_gap(gradient, l2) <= max(tolerance, rounding) or iteration == 300):
            inputs = problem.exact
            logits = problem.logits(point, inputs)
            probability = torch.softmax(logits, 0)
            gradient = problem.gradient(probability, point, penalty, inputs)
        if _gap(gradient, l2) <= tolerance:
            loss = (logits.logsumexp(0) - (logits * problem.targets).sum(0)).mean() + (penalty * point**2).sum() / 2
            weight, bias = problem.weights(point)
            return point, Solution(weight, bias, l2, loss.item(), _gap(gradient, l2), iteration)
        confidence = (probability * (1 - probability)).mean(1, keepdim=True)
        direction = _direction(gradient, confidence * problem.variances + penalty + 1e-12, pairs)
        along = problem.logits(direction, inputs)
        downhill = (gradient * direction).sum().item()
        step, probability = _search(problem, logits, along, point, direction, penalty, downhill)
        logits = logits + step * along
        moved = step * direction
        point = point + moved
        before, gradient = gradient, problem.gradient(probability, point, penalty, inputs)
        change = gradient - before
        curvature = (moved * change).sum()
        if curvature > 0:
            pairs = [*pairs[1 - HISTORY :], (moved, change, 1 / curvature)]
    raise RunError(
        f"the linear probe at L2 {l2:g} has not converged in {max_iterations} iterations "
        f"(it may be {_gap(gradient, l2):.1e} above the optimum); leave such small penalties out with --l2"
    )


def _gap(gradient: Tensor, l2: float) -> float:
    # The bias has no penalty to bound it; its gradient is held to the same measure as the weights'.
    return gradient.square().sum().item() / (2 * l2)


def _direction(gradient: Tensor, diagonal: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The two-loop recursion (Nocedal and Wright, algorithm 7.4), downhill."""
    rest = -gradient
    shares = []
    for moved, change, inverse in reversed(pairs):
        share = inverse * (moved * rest).sum()
        shares.append(share)
        rest = rest - share * change
    rest = rest / diagonal
    for (moved, change, inverse), share in zip(pairs, reversed(shares), strict=True):
        rest = rest + (share - inverse * (change * rest).sum()) * moved
    return rest


def _search(
    problem: _Problem, logits: Tensor, along: Tensor, point: Tensor, direction: Tensor, penalty: Tensor, downhill: float
) -> tuple[float, Tensor]:
    """A step at which the derivative along the direction has fallen to a tenth, and the probabilities there."""
    residual = along / problem.count
    fixed = (penalty * point * direction).sum() - (residual * problem.targets).sum()
    growth = (penalty * direction**2).sum()
    below, at_below = 0.0, downhill
    above = at_above = None
    step = 1.0
    for _ in range(50):
        probability = torch.softmax(logits + step * along, 0)
        here = ((probability * residual).sum() + fixed + step * growth).item()
        if abs(here) <= SLOPE * abs(downhill):
            break
        if here < 0:
            below, at_below = step, here
        else:
            above, at_above = step, here
        if above is None or at_above is None:
            step *= 2
        else:  # regula falsi, kept away from the ends
            share = min(max(at_below / (at_below - at_above), 0.1), 0.9)
            step = below + share * (above - below)
    return step, probability
