"""A ResNet's convolutions with their eval-mode BatchNorm folded in, and directions and derivatives through the folding.

In eval mode BatchNorm is an affine map per channel, so a convolution and its BatchNorm are one convolution of weight
W' = s gamma W and bias b' = beta - s gamma mean, s = 1 / sqrt(var + eps). The loss depends on (W, gamma, beta) through
(W', b') alone. That map is bilinear, so the Hessian needs only a few sums over weights from it and none over images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seal_fast.kernels import conv2d
from seal_fast.kernels.conv2d import conv2d_backward


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
    def _geometry(self) -> tuple[int, int]:
        """Stride and padding of the convolution, which is square."""
        assert isinstance(self.module, nn.Conv2d) and not isinstance(self.module.padding, str)
        return self.module.stride[0], self.module.padding[0]

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> Tensor:
        """The convolution with another weight and bias."""
        if groups == 1:
            return conv2d(x, weight, *self._geometry, bias=bias)
        return F.conv2d(x, weight, bias, *self._geometry, groups=groups)

    def gradient_of_weight(self, delta: Tensor, x: Tensor, like: Tensor) -> Tensor:
        """The gradient of the convolution's weight, of the size, type and memory format of `like`."""
        _, gradient = conv2d_backward(delta, x, like, *self._geometry, of_x=False)
        assert gradient is not None
        return gradient

    def gradient_of_input(self, delta: Tensor, weight: Tensor, x: Tensor, m: int = 1, groups: int = 1) -> Tensor:
        """The gradient of the convolution's input, of the type of x and m times its channels."""
        like = x
        if m > 1:
            size = x.shape[0], m * x.shape[1], *x.shape[2:]
            like = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        stride, padding = self._geometry
        if groups == 1:
            gradient, _ = conv2d_backward(delta, like, weight, stride, padding, of_weight=False)
            assert gradient is not None
            return gradient
        geometry = [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups
        return torch.ops.aten.convolution_backward(delta, like, weight, None, *geometry, [True, False, False])[0]

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
