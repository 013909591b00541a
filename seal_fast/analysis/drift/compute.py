"""Distance, cosine and angle between two states of a network's weights, in float64."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seal_fast.models import BATCHNORMS

Weights = Mapping[str, Tensor]
"""Parameters by name."""


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
    return float(sum(weights[name].double().square().sum() for name in names)) ** 0.5


class Move(NamedTuple):
    """Of one parameter w that went to w': |w|^2, |w'|^2, |w' - w|^2, (w, w'), and the angle of each filter."""

    sums: Tensor
    angles: Tensor | None


def moves(before: Weights, after: Weights, filters: Collection[str] = ()) -> dict[str, Move]:
    """How each parameter went from `before` to `after`, in one pass; `filters` are convolution weights [C, ...]."""
    found = {}
    for name, there in after.items():
        w, v = before[name].double(), there.double()
        sums = torch.stack([w.square().sum(), v.square().sum(), (v - w).square().sum(), (w * v).sum()])
        found[name] = Move(sums, _angles(w, v) if name in filters else None)
    return found


def compare(moves: Mapping[str, Move], names: Collection[str]) -> dict[str, float]:
    """How far the named parameters, as one vector w, went to w'; a figure that is not defined is left out.

    Returns:
        `distance` |w' - w|, `relative distance` |w' - w| / |w|, `cosine`, and over the filters among the names the mean
        `filter angle (degrees)`, which no scale of a filter changes.
    """
    here, there, moved, product = torch.stack([moves[name].sums for name in names]).sum(0).tolist()
    found = {"distance": moved**0.5}
    if here:
        found["relative distance"] = (moved / here) ** 0.5
    if here and there:
        found["cosine"] = product / (here * there) ** 0.5
    angles = [a for name in names if (a := moves[name].angles) is not None]
    if angles and len(angles := torch.cat(angles)):
        found["filter angle (degrees)"] = float(angles.mean())
    return found


def _angles(before: Tensor, after: Tensor) -> Tensor:
    """Of each filter that is not zero, in degrees; exact near 0, where the arc cosine is not."""
    before, after = before.flatten(1), after.flatten(1)
    here, there = before.norm(dim=1, keepdim=True), after.norm(dim=1, keepdim=True)
    chords = (after / there - before / here).norm(dim=1)[(here * there).flatten() > 0]
    return torch.rad2deg(2 * torch.asin((chords / 2).clamp(max=1)))
