"""Operators that make parameters forget, by name and in place, so that layouts, optimiser views and graphs stay valid.

Source: LLF, arXiv 2202.00155, and its released code for the distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from seal_fast.methods.schedule import Distribution
from seal_fast.models import fan_in, generator


@torch.no_grad()
def reinitialise(
    parameters: Mapping[str, Tensor], names: Iterable[str], distribution: Distribution, seed: int, generation: int
) -> list[str]:
    """Draw the convolution and linear weights among `names` anew; BatchNorm parameters and biases are kept.

    The draw, in float32, is a function of (seed, generation, name). `kaiming-uniform` is uniform in +-1/sqrt(fan_in),
    the released code's kaiming_uniform(a=sqrt(5)); `he-normal` has standard deviation sqrt(2/fan_in), as the initial
    weights.

    Returns:
        The names of the parameters that were drawn.
    """
    drawn = []
    for name in names:
        weight = parameters[name]
        if weight.ndim < 2:  # a bias, or BatchNorm's scale or shift
            continue
        inputs = fan_in(weight)
        fresh = torch.empty(weight.shape, dtype=torch.float32)
        source = generator(seed, f"reinitialise {generation} {name}")
        if distribution == "kaiming-uniform":
            bound = 1 / math.sqrt(inputs)
            fresh.uniform_(-bound, bound, generator=source)
        else:
            fresh.normal_(0, math.sqrt(2 / inputs), generator=source)
        weight.copy_(fresh)
        drawn.append(name)
    return drawn
