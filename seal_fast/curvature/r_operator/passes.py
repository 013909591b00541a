"""How gradients and tangents pass the layers of a ResNet; m tangents lie side by side as channels, [N, m C, H, W]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seal_fast.kernels import conv2d
from seal_fast.kernels.conv2d import conv2d_backward


@dataclass
class Tape:
    """What the passes at the point itself leave for the products of one batch.

    inputs, deltas: of each layer, its input and the loss's gradient at its output. pool: the max-pool's indices.
    masks: outputs of the stem (pooled) and of each block, whose sign is ReLU's mask. logits with their graph.
    """

    inputs: list[Tensor]
    deltas: list[Tensor]
    pool: Tensor | None
    masks: list[Tensor]
    stem_shape: torch.Size
    logits: Tensor
    logit_gradient: Tensor
    loss: float
    count: int

    @property
    def nbytes(self) -> int:
        """Bytes that it keeps alive."""
        kept = [*self.inputs, *self.deltas, *self.masks, self.logits] + ([] if self.pool is None else [self.pool])
        return sum({t.data_ptr(): t.numel() * t.element_size() for t in kept}.values())


def stride_and_padding(conv: nn.Conv2d) -> tuple[int, int]:
    """Of a square convolution."""
    assert not isinstance(conv.padding, str)
    return conv.stride[0], conv.padding[0]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d, groups: int = 1) -> Tensor:
    """The convolution `conv` with another weight and bias."""
    if groups == 1:
        return conv2d(x, weight, *stride_and_padding(conv), bias=bias)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, groups=groups)


def gradient_of_weight(delta: Tensor, x: Tensor, weight: Tensor, conv: nn.Conv2d) -> Tensor:
    """That of a convolution whose weight is like `weight`: its size, type and memory format count, not its values."""
    _, found = conv2d_backward(delta, x, weight, *stride_and_padding(conv), of_x=False)
    assert found is not None
    return found


def gradient_of_bias(delta: Tensor) -> Tensor:
    """[C] of [N, C, H, W]; summed in float32 or wider."""
    return delta.sum((0, 2, 3), dtype=torch.promote_types(delta.dtype, torch.float32))


def gradient_of_input(delta: Tensor, weight: Tensor, x: Tensor, conv: nn.Conv2d, m: int = 1, groups: int = 1) -> Tensor:
    """That of a convolution whose input was like x, m times beside each other."""
    like = x  # its size, type and memory format count, not its values
    if m > 1:
        size = x.shape[0], m * x.shape[1], *x.shape[2:]
        like = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if groups == 1:
        found, _ = conv2d_backward(delta, like, weight, *stride_and_padding(conv), of_weight=False)
        assert found is not None
        return found
    no_bias = None
    return torch.ops.aten.convolution_backward(
        delta, like, weight, no_bias, conv.stride, conv.padding, (1, 1), False, (0, 0), groups, (True, False, False)
    )[0]


def through_relu_(dot: Tensor, output: Tensor, m: int = 1) -> Tensor:
    """Through ReLU, whose output is given: zero where that is zero; in place."""
    parts = dot.unflatten(1, (m, -1))
    torch.ops.aten.threshold_backward.grad_input(parts, output[:, None].expand_as(parts), 0, grad_input=parts)
    return dot


def add_(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum, in place of a where both are there."""
    if a is None or b is None:
        return b if a is None else a
    return a.add_(b)


def pick(dot: Tensor, indices: Tensor, m: int) -> Tensor:
    """What the max-pool picked, [N, m C, H', W'] from [N, m C, H, W]."""
    rows = dot.permute(0, 2, 3, 1).flatten(1, 2)
    picks = indices.permute(0, 2, 3, 1).flatten(1, 2).repeat(1, 1, m)
    return rows.gather(1, picks).unflatten(1, indices.shape[2:]).permute(0, 3, 1, 2)


def unpool_max(dot: Tensor, indices: Tensor, shape: torch.Size, m: int = 1) -> Tensor:
    """The max-pool, backwards: to [N, m C, H, W] where `shape` is [N, C, H, W]."""
    picks = indices if m == 1 else indices.repeat(1, m, 1, 1)
    like = dot.new_empty(1).expand(shape[0], m * shape[1], *shape[2:])
    like = torch.empty_like(like, memory_format=torch.channels_last)
    return torch.ops.aten.max_pool2d_with_indices_backward(dot, like, (3, 3), (2, 2), (1, 1), (1, 1), False, picks)


def unpool_mean(delta: Tensor, like: Tensor) -> Tensor:
    """The mean over pixels, backwards: [N, C] to [N, C, H, W]."""
    height, width = like.shape[2:]
    spread = delta[:, :, None, None].expand(-1, -1, height, width) / (height * width)
    return spread.contiguous(memory_format=torch.channels_last)
