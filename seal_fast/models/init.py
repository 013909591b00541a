"""Initial weights as a function of (seed, parameter name): not of the construction order, the device or the dtype."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Draw = Callable[[Tensor, torch.Generator], Tensor]
"""Fill a float32 tensor on the CPU, in place."""


def generator(seed: int, name: str) -> torch.Generator:
    """The CPU generator of one named parameter; the same (seed, name) always gives the same stream."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def fan_in(weight: Tensor) -> int:
    """The number of inputs of one output of a conv weight (out, in, kh, kw) or a linear weight (out, in)."""
    return weight[0].numel()


def he_normal(weight: Tensor, random: torch.Generator) -> Tensor:
    """N(0, 2 / fan_in): He et al., ICCV 2015, section 2.2 (fan_in, ReLU gain)."""
    return weight.normal_(0.0, math.sqrt(2.0 / fan_in(weight)), generator=random)


def he_normal_fan_out(weight: Tensor, random: torch.Generator) -> Tensor:
    """N(0, 2 / fan_out): He et al., ICCV 2015, section 2.2, backward case; fan_out counts outputs times taps."""
    return weight.normal_(0.0, math.sqrt(2.0 / (weight.numel() / weight.shape[1])), generator=random)


def uniform_fan_in(weight: Tensor, random: torch.Generator) -> Tensor:
    """Uniform in +-1 / sqrt(fan_in), as Torch and PyTorch draw a linear layer."""
    return weight.uniform_(-1 / math.sqrt(fan_in(weight)), 1 / math.sqrt(fan_in(weight)), generator=random)


def normal(std: float) -> Draw:
    """N(0, std^2)."""
    return lambda weight, random: weight.normal_(0.0, std, generator=random)


def zero(weight: Tensor, random: torch.Generator) -> Tensor:
    """Zero."""
    return weight.zero_()


@dataclass(frozen=True)
class Initial:
    """How the layers of a network are drawn.

    conv, linear: of weights. bias: of biases; None is uniform in +-1 / sqrt(fan_in), PyTorch's default. named: of
    single tensors, by the end of their name, in place of the others.
    """

    conv: Draw = he_normal
    linear: Draw = he_normal
    bias: Draw | None = None
    named: Mapping[str, Draw] = field(default_factory=dict)


@torch.no_grad()
def draw_(tensor: Tensor, draw: Draw, seed: int, name: str) -> Tensor:
    """Fill a tensor of any device and dtype with numbers that are drawn in float32 on the CPU."""
    # Drawn in the logical (contiguous) order: the memory format of `tensor` must not change its values.
    return tensor.copy_(draw(torch.empty(tensor.shape, dtype=torch.float32), generator(seed, name)))


def he_normal_(weight: Tensor, seed: int, name: str) -> Tensor:
    """Fill a conv or linear weight from N(0, 2 / fan_in)."""
    return draw_(weight, he_normal, seed, name)


def bias_uniform_(bias: Tensor, inputs: int, seed: int, name: str) -> Tensor:
    """Fill a bias with PyTorch's default for a linear layer: uniform in +-1 / sqrt(inputs)."""
    bound = 1.0 / math.sqrt(inputs)
    return draw_(bias, lambda t, random: t.uniform_(-bound, bound, generator=random), seed, name)


def initialise_(model: nn.Module, seed: int) -> None:
    """Set every parameter and buffer of a registered network to its initial value.

    Conv and linear layers are drawn as the network's `initial` says. Normalisation layers start as the identity, with
    running mean 0, running variance 1 and no batch counted.

    Raises:
        TypeError: a parameter belongs to no such layer and `initial` does not name it.
    """
    policy = getattr(model, "initial", Initial())
    for prefix, module in model.named_modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            module.reset_parameters()
            continue
        for name, p in module.named_parameters(prefix, recurse=False):
            draw = next((draw for end, draw in policy.named.items() if name.endswith(end)), None)
            layer = isinstance(module, (nn.Conv2d, nn.Linear))
            if draw is None and not layer:
                raise TypeError(f"{name}: its initial value is not known")
            if draw or (layer and p.ndim > 1):
                draw_(p, draw or (policy.conv if p.ndim == 4 else policy.linear), seed, name)
            elif policy.bias:
                draw_(p, policy.bias, seed, name)
            else:
                bias_uniform_(p, fan_in(module.weight), seed, name)  # type: ignore[arg-type]
