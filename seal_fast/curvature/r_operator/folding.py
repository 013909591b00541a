"""A ResNet's convolutions with their eval-mode BatchNorm folded in, and directions and derivatives through the folding.

In eval mode BatchNorm is an affine map per channel, so a convolution and its BatchNorm are one convolution of weight
W' = s gamma W and bias b' = beta - s gamma mean, s = 1 / sqrt(var + eps). The loss depends on (W, gamma, beta) through
(W', b') alone. That map is bilinear, so the Hessian needs only a few sums over weights from it and none over images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Folded:
    """One convolution of the folded network, or the linear layer (`norm` None).

    Tangents and derivatives [m, ...] are in the network's type; the sums over a filter that folding needs are float64,
    as are `gradient_weight` and `gradient_bias`: the loss's gradient with respect to the folded weight and bias, summed
    over all images. `scale` and `mean` are s and the running mean, float64 [C].
    """

    name: str
    module: nn.Conv2d | nn.Linear
    norm_name: str | None
    norm: nn.BatchNorm2d | None
    weight: Tensor
    bias: Tensor
    gradient_weight: Tensor
    gradient_bias: Tensor
    scale: Tensor
    mean: Tensor

    @property
    def names(self) -> list[str]:
        """Names of its parameters."""
        if self.norm is None:
            return [f"{self.name}.weight", f"{self.name}.bias"]
        return [f"{self.name}.weight", f"{self.norm_name}.weight", f"{self.norm_name}.bias"]

    @property
    def conv(self) -> nn.Conv2d:
        """The module, where it is a convolution."""
        assert isinstance(self.module, nn.Conv2d)
        return self.module

    def push(self, direction: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The direction [m, ...] of the folded weight and bias, for a direction of the parameters."""
        if self.norm is None:
            return direction[f"{self.name}.weight"], direction[f"{self.name}.bias"]
        weight, gamma, beta = (direction[name] for name in self.names)
        folded = weight * per_channel(self.scale * self.norm.weight.double()).to(weight)
        folded.addcmul_(per_channel(self.scale * gamma).to(weight), self.module.weight)
        return folded, (beta - self.scale * self.mean * gamma).to(weight)

    def pull(
        self,
        weight: Tensor,
        bias: Tensor,
        gradient: Tensor | None = None,
        direction: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Derivatives by parameter name, from those of the folded weight [m, ...] and bias [m, C].

        Without `direction` they are of first order: gradients to gradients. With it they are directional derivatives of
        the gradient, and `gradient`, that of the folded weight itself in the network's type, adds its part.
        """
        if self.norm is None:
            return {f"{self.name}.weight": weight, f"{self.name}.bias": bias}
        gamma = filter_sums(self.module.weight * weight) - self.mean * bias
        result = weight * per_channel(self.scale * self.norm.weight.double()).to(weight)
        if gradient is not None and direction is not None:
            toward_weight, toward_gamma, _ = (direction[name] for name in self.names)
            gamma += filter_sums(toward_weight * gradient)
            result.addcmul_(per_channel(self.scale * toward_gamma).to(weight), gradient)
        return dict(zip(self.names, (result, self.scale * gamma, bias), strict=True))


def fold(
    module: nn.Conv2d | nn.Linear, name: str, norm: nn.BatchNorm2d | None = None, norm_name: str | None = None
) -> Folded:
    """`module` with `norm` folded in, in the module's type and memory format, with gradients of zero."""
    weight = module.weight.detach()
    bias = None if module.bias is None else module.bias.detach()
    scale = mean = torch.zeros(0, dtype=torch.float64, device=weight.device)
    if norm is not None:
        assert norm.running_mean is not None and norm.running_var is not None
        scale, mean = (norm.running_var.double() + norm.eps).rsqrt(), norm.running_mean.double()
        factor = scale * norm.weight.detach().double()
        bias = (norm.bias.detach().double() - mean * factor).to(weight.dtype)
        weight = (weight.double() * per_channel(factor)).to(weight.dtype)
    assert bias is not None
    zeros = [torch.zeros(t.shape, dtype=torch.float64, device=t.device) for t in (weight, bias)]
    return Folded(name, module, norm_name, norm, weight, bias, zeros[0], zeros[1], scale, mean)


def filter_sums(products: Tensor) -> Tensor:
    """Sums [m, C] over the filters of [m, C, in, kh, kw], float64."""
    return products.sum((2, 3, 4), dtype=torch.float64)


def per_channel(values: Tensor) -> Tensor:
    """[..., C] as a factor on a weight [..., C, in, kh, kw]."""
    return values[..., None, None, None]
