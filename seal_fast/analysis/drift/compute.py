"""Distance, cosine and angle between two states of a network's weights, in float64."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from seal_fast.models import BATCHNORMS

Weights = Mapping[str, Tensor]
"""Parameters by name, float64."""


def layers(model: nn.Module) -> dict[str, list[str]]:
    """The names of the parameters of each module that has its own, in the order of the network."""
    found: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def scale_free(model: nn.Module) -> list[str]:
    """The weights whose scale a BatchNorm undoes: of convolutions without bias, where the network has BatchNorm."""
    if not any(isinstance(module, BATCHNORMS) for module in model.modules()):
        return []
    convolutions = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.bias is None}
    return [f"{name}.weight" for name in convolutions]


def norm(weights: Weights, names: Collection[str]) -> float:
    """The Euclidean norm of the named parameters as one vector."""
    return float(sum(weights[name].square().sum() for name in names)) ** 0.5


def compare(before: Weights, after: Weights, names: Collection[str], filters: Collection[str] = ()) -> dict[str, float]:
    """How far the named parameters, as one vector w, went to w'; a figure that is not defined is left out.

    Args:
        before: the weights w.
        after: the weights w'.
        names: the parameters.
        filters: convolution weights [C, ...] whose scale has no effect.

    Returns:
        `distance` |w' - w|, `relative distance` |w' - w| / |w|, `cosine`, and over the filters among the names the mean
        `filter angle (degrees)`, which no scale of a filter changes.
    """
    here, there = norm(before, names), norm(after, names)
    distance = float(sum((after[name] - before[name]).square().sum() for name in names)) ** 0.5
    found = {"distance": distance}
    if here:
        found["relative distance"] = distance / here
    if here and there:
        found["cosine"] = float(sum((after[name] * before[name]).sum() for name in names)) / (here * there)
    angles = [_angles(before[name], after[name]) for name in names if name in filters]
    if angles and len(angles := torch.cat(angles)):
        found["filter angle (degrees)"] = float(angles.mean())
    return found


def _angles(before: Tensor, after: Tensor) -> Tensor:
    """Of each filter that is not zero, in degrees; exact near 0, where the arc cosine is not."""
    before, after = before.flatten(1), after.flatten(1)
    here, there = before.norm(dim=1, keepdim=True), after.norm(dim=1, keepdim=True)
    chords = (after / there - before / here).norm(dim=1)[(here * there).flatten() > 0]
    return torch.rad2deg(2 * torch.asin((chords / 2).clamp(max=1)))
