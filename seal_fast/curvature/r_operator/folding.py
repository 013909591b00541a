"""A ResNet's convolutions with their eval-mode BatchNorm folded in, and how directions and curvature pass the folding.

In eval mode BatchNorm is an affine map per channel, so conv and BatchNorm together are one convolution of weight
W' = s gamma W and bias b' = beta - s gamma mean, s = 1 / sqrt(var + eps). The loss depends on (W, gamma, beta) through
(W', b') alone, and that map is bilinear: what the Hessian needs of it is a few sums over weights, none over images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Folded:
    """One convolution (or the linear layer, `norm` None) of the folded network.

    Tangents and curvatures carry the vectors' dimension m first and are in the network's type; the sums over a filter
    that folding needs are float64. `gradient_*` hold the loss's gradient
    with respect to the folded weight and bias, summed over all images, and are float64.
    """

    name: str
    module: nn.Conv2d | nn.Linear
    norm_name: str | None
    norm: nn.BatchNorm2d | None
    weight: Tensor
    bias: Tensor
    gradient_weight: Tensor
    gradient_bias: Tensor

    @property
    def names(self) -> list[str]:
        """The parameters it is made of."""
        second = self.norm_name or self.name
        own = [f"{self.name}.weight", f"{second}.weight", f"{second}.bias"]
        return own if self.norm_name else [own[0], own[2]]

    @property
    def inverse_std(self) -> Tensor:
        """s, float64 [C]."""
        assert self.norm is not None and self.norm.running_var is not None
        return (self.norm.running_var.double() + self.norm.eps).rsqrt()

    @property
    def conv(self) -> nn.Conv2d:
        """The module, where it is a convolution."""
        assert isinstance(self.module, nn.Conv2d)
        return self.module

    def push(self, direction: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The direction [m, ...] of the folded weight and bias, for a direction of the parameters, in its type."""
        weight = direction[f"{self.name}.weight"]
        if self.norm is None:
            return weight, direction[f"{self.name}.bias"]
        s, mean = self.inverse_std, self.mean
        gamma, beta = direction[f"{self.norm_name}.weight"], direction[f"{self.norm_name}.bias"]
        folded = weight * per_channel(s * self.norm.weight.double()).to(weight)
        folded.addcmul_(per_channel(s * gamma).to(weight), self.module.weight)
        return folded, (beta - s * mean * gamma).to(weight)

    def pull(
        self, weight: Tensor, bias: Tensor, gradient: Tensor, direction: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The Hessian's product by parameter name, from the directional derivative of the folded gradient.

        Args:
            weight: [m, *W.shape], the derivative of the gradient of the folded weight.
            bias: [m, C], that of the folded bias.
            gradient: that of the folded weight itself, in the direction's type.
            direction: the parameters' own direction.
        """
        if self.norm is None:
            return {f"{self.name}.weight": weight, f"{self.name}.bias": bias}
        s, mean = self.inverse_std, self.mean
        toward_weight, toward_gamma = direction[f"{self.name}.weight"], direction[f"{self.norm_name}.weight"]
        gamma = sums(self.module.weight * weight) + sums(toward_weight * gradient) - mean * bias
        scaled = weight * per_channel(s * self.norm.weight.double()).to(weight)
        scaled.addcmul_(per_channel(s * toward_gamma).to(weight), gradient)
        return {
            f"{self.name}.weight": scaled,
            f"{self.norm_name}.weight": s * gamma,
            f"{self.norm_name}.bias": bias,
        }

    @property
    def mean(self) -> Tensor:
        """The running mean, float64 [C]."""
        assert self.norm is not None and self.norm.running_mean is not None
        return self.norm.running_mean.double()

    def pull_gradient(self, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        """A gradient by parameter name, from that of the folded weight and bias, float64."""
        if self.norm is None:
            return {f"{self.name}.weight": weight, f"{self.name}.bias": bias}
        s, outer = self.inverse_std, tuple(range(1, self.module.weight.dim()))
        gamma = (self.module.weight.double() * weight).sum(outer) - self.mean * bias
        return {
            f"{self.name}.weight": per_channel(s * self.norm.weight.double()) * weight,
            f"{self.norm_name}.weight": s * gamma,
            f"{self.norm_name}.bias": bias,
        }


def fold(
    module: nn.Conv2d | nn.Linear, name: str, norm: nn.BatchNorm2d | None = None, norm_name: str | None = None
) -> Folded:
    """`module` with `norm` folded in, in the module's own type and memory format; its gradients are zero so far."""
    weight = module.weight.detach()
    bias = None if module.bias is None else module.bias.detach()
    if norm is not None:
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.detach().double() * (norm.running_var.double() + norm.eps).rsqrt()
        bias = (norm.bias.detach().double() - norm.running_mean.double() * scale).to(weight.dtype)
        weight = (weight.double() * per_channel(scale)).to(weight.dtype)
    assert bias is not None
    zero = torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)
    return Folded(name, module, norm_name, norm, weight, bias, zero, torch.zeros_like(bias, dtype=torch.float64))


def sums(products: Tensor) -> Tensor:
    """Sums [m, C] over all but the channels of [m, C, in, kh, kw], float64."""
    return products.sum((2, 3, 4), dtype=torch.float64)


def per_channel(values: Tensor) -> Tensor:
    """[..., C] as a factor on a weight [..., C, in, kh, kw]."""
    return values[..., None, None, None]
