"""Loss and accuracy on the line between two networks and in the plane through three, and the height of a barrier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seal_fast.models import BATCHNORMS
from seal_fast.utils.errors import UsageError

Batches = Sequence[tuple[Tensor, Tensor]]
"""Images [B, 3, S, S] and labels int64 [B]."""
Path = dict[str, dict[str, list[float]]]
"""By split, `loss` and `top1` (in percent) at each point."""
Point = Mapping[str, tuple[float, float]]
"""By split, loss and top-1 of one network."""
Autocast = Callable[[], AbstractContextManager[Any]]


def height(values: Sequence[float]) -> float:
    """The most that values at evenly spaced points exceed the straight line between the first and the last."""
    last = len(values) - 1
    return max(v - values[0] - i / last * (values[-1] - values[0]) for i, v in enumerate(values))


@torch.no_grad()
def recompute_statistics(model: nn.Module, batches: Batches, autocast: Autocast = nullcontext) -> None:
    """Set the running statistics of every BatchNorm to the mean over images of their batch's mean and variance.

    As `torch.optim.swa_utils.update_bn`, which weights batches of different sizes equally. Everything else stays in
    eval mode. A batch of a single image has no variance and is left out.
    """
    norms = [m for m in model.modules() if isinstance(m, BATCHNORMS) and m.track_running_stats]
    momenta, seen = [norm.momentum for norm in norms], 0
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    for images, _ in batches if norms else ():
        if len(images) > 1:
            seen += len(images)
            for norm in norms:
                norm.momentum = len(images) / seen
            with autocast():
                model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, autocast: Autocast = nullcontext) -> tuple[float, float]:
    """Mean cross entropy and top-1 in percent; NaN counts as a miss. Sums are float64."""
    loss, hits, count = 0.0, 0, 0
    for images, labels in batches:
        with autocast():
            logits = model(images)
        logits = logits.double()
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        hits += int(((logits.argmax(1) == labels) & logits.isfinite().all(1)).sum())
        count += len(labels)
    return loss / count, 100 * hits / count


@torch.no_grad()
def line(
    model: nn.Module,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    points: int,
    train: Batches,
    splits: Mapping[str, Batches],
    autocast: Autocast = nullcontext,
    progress: Callable[[int], None] = lambda done: None,
    ends: Sequence[Point | None] = (None, None),
) -> Path:
    """Loss and accuracy at `points` evenly spaced points from `before` to `after`, both ends among them.

    Args:
        model: of the architecture, in eval mode; its weights and statistics are overwritten.
        before: its parameters by name, at the first point.
        after: at the last one.
        points: at least 2.
        train: images for the BatchNorm statistics, which are recomputed at every point.
        progress: called with the number of points done.
        ends: what is known already of the first and of the last point.
    """
    places = ({name: torch.lerp(before[name], after[name], i / (points - 1)) for name in before} for i in range(points))
    return _along(model, places, train, splits, autocast, progress, {0: ends[0], points - 1: ends[1]})


def _along(
    model: nn.Module,
    places: Iterable[Mapping[str, Tensor]],
    train: Batches,
    splits: Mapping[str, Batches],
    autocast: Autocast,
    progress: Callable[[int], None],
    known: Mapping[int, Point | None] = MappingProxyType({}),
) -> Path:
    """Loss and accuracy with the weights of each place that is not `known`, BatchNorm statistics recomputed."""
    found: Path = {name: {"loss": [], "top1": []} for name in splits}
    for number, weights in enumerate(places):
        if (point := known.get(number)) is None:
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
            recompute_statistics(model, train, autocast)
            point = {name: evaluate(model, batches, autocast) for name, batches in splits.items()}
        for name, (loss, top1) in point.items():
            found[name]["loss"].append(loss)
            found[name]["top1"].append(top1)
        progress(number + 1)
    return found


@torch.no_grad()
def plane(
    model: nn.Module,
    corners: Sequence[Mapping[str, Tensor]],
    side: int,
    train: Batches,
    splits: Mapping[str, Batches],
    autocast: Autocast = nullcontext,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Loss and accuracy on a grid in the plane through three networks (Garipov et al., NeurIPS 2018, section 3).

    Args:
        corners: the parameters of three networks by name; the rest is as in `line`.
        side: points along each axis; the grid reaches a quarter beyond the networks.

    Returns:
        `corners`: distances (x, y) of the networks from the first, the second on the x axis; `x` and `y` of the grid;
        `splits`: as in `line`, y by y.

    Raises:
        UsageError: the networks lie on one line.
    """
    first, second, third = corners
    u = {name: (second[name] - first[name]).double() for name in first}
    v = {name: (third[name] - first[name]).double() for name in first}
    along = _dot(v, u) / max(_dot(u, u), 1e-300)
    v = {name: v[name] - along * u[name] for name in v}
    wide, high = _dot(u, u) ** 0.5, _dot(v, v) ** 0.5
    if not wide or high <= 1e-6 * wide:
        raise UsageError("--plane: the three networks lie on one line; name others")
    points = [(0.0, 0.0), (wide, 0.0), (along * wide, high)]
    axes = []
    for values in zip(*points, strict=True):
        margin = (max(values) - min(values)) / 4
        axes.append(torch.linspace(min(values) - margin, max(values) + margin, side, dtype=torch.float64).tolist())
    places = (
        {name: (first[name] + (x / wide) * u[name] + (y / high) * v[name]).to(first[name].dtype) for name in first}
        for y in axes[1]
        for x in axes[0]
    )
    found = _along(model, places, train, splits, autocast, progress)
    return {"corners": points, "x": axes[0], "y": axes[1], "splits": found}


def _dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return sum(float((a[name] * b[name]).sum()) for name in a)
