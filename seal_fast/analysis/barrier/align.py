"""Permutations of a ResNet's channels that bring it close to another one, by weight matching.

Ainsworth, Hayase and Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries", ICLR 2023, section 3.2,
algorithm 1: a network computes the same when the channels of a layer change places with all that reads them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from seal_fast.models import ResNet

Axes = dict[str, tuple[str, ...]]
"""For each parameter and statistic, the permutation of each of its first axes; "" is an axis that stays."""


def channel_axes(model: ResNet) -> Axes:
    """Which axes share a permutation: a convolution's outputs, their BatchNorm, and the inputs of all that reads them.

    Blocks whose identity path is no convolution add to the same channels, so these share one.
    """
    axes: Axes = {}

    def add(conv: str, norm: str, outputs: str, inputs: str) -> str:
        axes[f"{conv}.weight"] = outputs, inputs
        axes.update({f"{norm}.{part}": (outputs,) for part in ("weight", "bias", "running_mean", "running_var")})
        return outputs

    stream = add("conv1", "bn1", "conv1", "")
    for name, block in model.blocks():
        inside, last = stream, sum(isinstance(m, nn.Conv2d) for m in block.children())
        outputs = stream if block.downsample is None else name
        for i in range(1, last + 1):
            inside = add(f"{name}.conv{i}", f"{name}.bn{i}", outputs if i == last else f"{name}.conv{i}", inside)
        if block.downsample is not None:
            add(f"{name}.downsample.0", f"{name}.downsample.1", outputs, stream)
        stream = outputs
    axes["fc.weight"] = "", stream
    return axes


def matched(moving: Mapping[str, Tensor], fixed: Mapping[str, Tensor], axes: Axes) -> dict[str, Tensor]:
    """The permutations, int64 by name, of `moving` that make its product with `fixed` large, a local optimum.

    One permutation after the other becomes the best one given all others, in a fixed random order, until a
    round changes nothing.

    Args:
        moving: the parameters by name; those that `axes` lacks have no say.
        fixed: of the other network.
    """
    from scipy.optimize import linear_sum_assignment

    axes = {name: of for name, of in axes.items() if name in moving}
    sizes: dict[str, int] = {}
    for name, of in axes.items():
        sizes |= {group: size for group, size in zip(of, fixed[name].shape, strict=False) if group}
    found = {group: torch.arange(size) for group, size in sizes.items()}
    draw, groups, changed = torch.Generator().manual_seed(0), list(sizes), True
    while changed:
        changed = False
        for at in torch.randperm(len(groups), generator=draw).tolist():
            group = groups[at]
            products = torch.zeros(sizes[group], sizes[group], dtype=torch.float64)
            others = found | {group: torch.arange(sizes[group])}
            for name, of in axes.items():
                if group in of:
                    axis = of.index(group)
                    here = permuted({name: moving[name].detach()}, axes, others)[name]
                    w, v = (t.double().movedim(axis, 0).reshape(sizes[group], -1) for t in (fixed[name], here))
                    products += (w @ v.T).cpu()
            best = torch.from_numpy(linear_sum_assignment(products.numpy(), maximize=True)[1])
            rows = torch.arange(len(best))
            gain = float((products[rows, best] - products[rows, found[group]]).sum())
            if gain > 1e-9 * float(products.abs().max()):  # less is rounding, which might go round in circles
                found[group], changed = best, True
    return found


def permuted(tensors: Mapping[str, Tensor], axes: Axes, permutations: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a network whose channel i is the channel `permutation[i]` of before; it computes the same."""
    found = dict(tensors)
    for name, of in axes.items():
        for axis, group in enumerate(of):
            if group and name in found:
                found[name] = found[name].index_select(axis, permutations[group].to(found[name].device))
    return found
