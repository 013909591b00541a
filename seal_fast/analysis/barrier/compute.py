"""Loss and accuracy on the straight line between the weights of two networks, and the height of the barrier there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seal_fast.models import BATCHNORMS

Batches = Sequence[tuple[Tensor, Tensor]]
"""Images [B, 3, S, S] and labels int64 [B]."""
Path = dict[str, dict[str, list[float]]]
"""By split, `loss` and `top1` (in percent) at each point."""
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
) -> Path:
    """Loss and accuracy at `points` evenly spaced points from `before` to `after`, both ends among them.

    Args:
        model: of the architecture, in eval mode; its weights and statistics are overwritten.
        before: its parameters by name, at the first point.
        after: at the last one.
        points: at least 2.
        train: images for the BatchNorm statistics, which are recomputed at every point.
        splits: images to measure on.
        autocast: makes the context of the forward passes.
        progress: called with the number of points done.
    """
    found: Path = {name: {"loss": [], "top1": []} for name in splits}
    for i in range(points):
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.lerp(before[name], after[name], i / (points - 1)))
        recompute_statistics(model, train, autocast)
        for name, batches in splits.items():
            loss, top1 = evaluate(model, batches, autocast)
            found[name]["loss"].append(loss)
            found[name]["top1"].append(top1)
        progress(i + 1)
    return found
