"""Dormant units, the effective rank of features, gradients, and weights that change their sign."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def per_image(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean magnitude and mean of each unit of each image, float32 [N, C], of maps [N, C, H, W] or tokens [N, T, C]."""
    x = x.float()
    x = x.flatten(2) if x.ndim == 4 else x.mT if x.ndim == 3 else x.flatten(1)[..., None]
    return x.abs().mean(2), x.mean(2)


@contextmanager
def reading(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Collect, on the host, the `per_image` of each module's output in every forward pass, by the module's name."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in modules}

    def read(name: str, module: nn.Module, inputs: Any, x: Tensor) -> None:
        activity, features = per_image(x.detach())
        found[name].append((activity.cpu(), features.cpu()))

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(module.register_forward_hook(partial(read, name)))
        yield found


def gradient(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[Tensor]:
    """The gradient of a batch's mean loss with respect to every parameter, in their order; 0 where one is not used."""
    with torch.enable_grad():
        with autocast():
            logits = model(images)
        found = torch.autograd.grad(loss(logits.float(), labels), list(model.parameters()), materialize_grads=True)
    return list(found)


def sign_changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor], names: Collection[str]) -> float:
    """Share of the entries of the named parameters that went from below 0 to above 0 or back, in percent."""
    changed = sum(int((before[name].sign() * after[name].sign() < 0).sum()) for name in names)
    return 100 * changed / sum(after[name].numel() for name in names)


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
