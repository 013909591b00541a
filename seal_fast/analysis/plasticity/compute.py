"""Dormant units and the effective rank of features, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def per_image(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean magnitude and mean of each unit of each image, float32 [N, C], of maps [N, C, H, W] or tokens [N, T, C]."""
    x = x.float()
    x = x.flatten(2) if x.ndim == 4 else x.mT if x.ndim == 3 else x.flatten(1)[..., None]
    return x.abs().mean(2), x.mean(2)


@torch.no_grad()
def outputs(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    batches: Iterable[Tensor],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, tuple[Tensor, Tensor]]:
    """By module the `per_image` of its output over batches of images [B, 3, S, S], on the host."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in modules}

    def reader(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def read(module: nn.Module, inputs: Any, x: Tensor) -> None:
            activity, features = per_image(x)
            found[name].append((activity.cpu(), features.cpu()))

        return read

    hooks = [module.register_forward_hook(reader(name)) for name, module in modules.items()]
    try:
        for images in batches:
            with autocast():
                model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (torch.cat([a for a, _ in some]), torch.cat([f for _, f in some])) for name, some in found.items()}


def dormant(activity: Tensor, tau: float) -> Tensor:
    """Which units are tau-dormant, bool [C] (Sokar et al., ICML 2023, definition 3.1).

    Args:
        activity: mean magnitude of each unit of each image, [N, C].
        tau: a unit is dormant if its mean over the images is at most `tau` of the mean over the layer's units. In a
            layer without any activity all are.
    """
    mean = activity.double().mean(0)
    return mean <= tau * mean.mean()


def effective_rank(features: Tensor) -> float:
    """The exponential of the entropy of the normalised singular values of [N, C] (Roy and Vetterli, EUSIPCO 2007).

    From 1, where all features lie on a line through 0, to the smaller of N and C; 0 where all are 0.
    """
    values = torch.linalg.svdvals(features.double())
    if not (total := float(values.sum())):
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())
