"""Initial weights as a function of (seed, parameter name): not of the construction order, the device or the dtype."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn


def generator(seed: int, name: str) -> torch.Generator:
    """The CPU generator of one named parameter; the same (seed, name) always gives the same stream."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def fan_in(weight: Tensor) -> int:
    """The number of inputs of one output of a conv weight (out, in, kh, kw) or a linear weight (out, in)."""
    return weight[0].numel()


@torch.no_grad()
def he_normal_(weight: Tensor, seed: int, name: str) -> Tensor:
    """Fill a conv or linear weight from N(0, 2 / fan_in): He et al., ICCV 2015, section 2.2 (fan_in, ReLU gain).

    The numbers are drawn in float32 on the CPU and then copied, so they agree on every device and in every dtype.
    """
    # Drawn in the logical (contiguous) order: the memory format of `weight` must not change its values.
    drawn = torch.empty(weight.shape, dtype=torch.float32)
    drawn.normal_(0.0, math.sqrt(2.0 / fan_in(weight)), generator=generator(seed, name))
    return weight.copy_(drawn)


@torch.no_grad()
def bias_uniform_(bias: Tensor, inputs: int, seed: int, name: str) -> Tensor:
    """Fill a bias with PyTorch's default for a linear layer: uniform in +-1 / sqrt(inputs)."""
    bound = 1.0 / math.sqrt(inputs)
    drawn = torch.empty(bias.shape, dtype=torch.float32)
    return bias.copy_(drawn.uniform_(-bound, bound, generator=generator(seed, name)))


def initialise_(model: nn.Module, seed: int) -> None:
    """Set every parameter and buffer of a network of conv, linear and BatchNorm layers to its initial value.

    Conv and linear weights are He-normal, linear biases PyTorch's default, BatchNorm starts as the identity with
    running mean 0, running variance 1 and no batch counted.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            he_normal_(module.weight, seed, f"{name}.weight")
            if module.bias is not None:
                bias_uniform_(module.bias, fan_in(module.weight), seed, f"{name}.bias")
