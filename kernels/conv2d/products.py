"""Convolution as matrix products: what is faster on a CPU where maps are small and channels many.

Two ways to write one, with q a pixel of the output and p one of the input:

- *whole*: every window covers the whole map (3x3 on 2x2, say). The map is one row, and the weight is laid out as a
  matrix from all p to all q. No tap that meets padding is multiplied: 4 of 9 are left on a 2x2 map, 1 of 9 on 1x1.
- *columns*: every window is copied out as a row (im2col; Chellapilla et al., IWFHR 2006).

All tensors are channels-last: [N, C, H, W] lies in memory as [N, H, W, C], a weight [O, C, kh, kw] as [O, kh, kw, C].
Inputs and results of one call are of one type; sums are float32, or float64 where that is the type.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Shape(NamedTuple):
    """Sizes of one convolution; kernel and stride are square."""

    height: int
    width: int
    kernel: int
    stride: int
    padding: int

    def output(self) -> tuple[int, int]:
        """Height and width of the output."""
        reach = 2 * self.padding - self.kernel
        return (self.height + reach) // self.stride + 1, (self.width + reach) // self.stride + 1

    def whole(self) -> bool:
        """Whether every window covers the whole map."""
        last = max((n - 1) * self.stride for n in self.output())
        return self.padding >= last and max(self.height, self.width) <= self.kernel - self.padding

    def taps(self) -> Iterator[tuple[int, int, slice, slice]]:
        """Every pixel of the output, and the part of the kernel that covers the map from there; for `whole` only."""
        rows, columns = self.output()
        for qy in range(rows):
            for qx in range(columns):
                y, x = self.padding - qy * self.stride, self.padding - qx * self.stride
                yield qy, qx, slice(y, y + self.height), slice(x, x + self.width)


def whole_forward(x: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    """The output [N, O, H', W']."""
    return _image(_rows(x) @ _spread(weight, shape).t(), *shape.output())


def whole_grad_x(grad: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    """The gradient of x [N, C, H, W]."""
    return _image(_rows(grad) @ _spread(weight, shape), shape.height, shape.width)


def whole_grad_weight(grad: Tensor, x: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    """The gradient of the weight."""
    outputs, channels = weight.shape[:2]
    product = (_rows(grad).t() @ _rows(x)).view(*shape.output(), outputs, shape.height, shape.width, channels)
    sums = torch.zeros(outputs, shape.kernel, shape.kernel, channels, dtype=_wide(weight.dtype))
    for qy, qx, rows, columns in shape.taps():
        sums[:, rows, columns] += product[qy, qx]
    return sums.to(weight.dtype).permute(0, 3, 1, 2)


def columns_forward(x: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    """The output [N, O, H', W']."""
    product = _columns(x, shape) @ _rows(weight).t()
    rows, columns = shape.output()
    return _image(product.view(len(x), rows * columns * len(weight)), rows, columns)


def columns_grad_x(grad: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    """The gradient of x [N, C, H, W]."""
    channels, k, s, p = weight.shape[1], shape.kernel, shape.stride, shape.padding
    rows, columns = shape.output()
    product = _pixels(grad) @ _rows(weight)
    product = product.view(len(grad), rows, columns, k, k, channels)
    # Where windows do not overlap nothing is added up, and a sum needs no wider type.
    dtype = _wide(grad.dtype) if k > s else grad.dtype
    padded = torch.zeros(len(grad), shape.height + 2 * p, shape.width + 2 * p, channels, dtype=dtype)
    for ky in range(k):
        for kx in range(k):
            padded[:, ky : ky + s * rows : s, kx : kx + s * columns : s] += product[:, :, :, ky, kx]
    inner = padded[:, p : p + shape.height, p : p + shape.width].permute(0, 3, 1, 2)
    return inner.to(grad.dtype).contiguous(memory_format=torch.channels_last)


def columns_grad_weight(grad: Tensor, x: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    """The gradient of the weight."""
    product = _pixels(grad).t() @ _columns(x, shape)
    return product.view(len(weight), shape.kernel, shape.kernel, weight.shape[1]).permute(0, 3, 1, 2)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _rows(x: Tensor) -> Tensor:
    """[N, C, H, W] as [N, H*W*C]."""
    return x.permute(0, 2, 3, 1).flatten(1)


def _pixels(x: Tensor) -> Tensor:
    """[N, C, H, W] as [N*H*W, C]."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _image(rows: Tensor, height: int, width: int) -> Tensor:
    """[N, H*W*C] as [N, C, H, W]."""
    return rows.view(len(rows), height, width, rows.shape[1] // (height * width)).permute(0, 3, 1, 2)


def _spread(weight: Tensor, shape: Shape) -> Tensor:
    """The weight as a matrix [H'*W'*O, H*W*C] from all pixels to all pixels."""
    outputs, channels = weight.shape[:2]
    kernel = weight.permute(0, 2, 3, 1)
    spread = torch.empty(*shape.output(), outputs, shape.height, shape.width, channels, dtype=weight.dtype)
    for qy, qx, rows, columns in shape.taps():
        spread[qy, qx] = kernel[:, rows, columns]
    return spread.flatten(3).flatten(0, 2)


def _columns(x: Tensor, shape: Shape) -> Tensor:
    """Every window as a row: [N*H'*W', kh*kw*C]."""
    k, s, p = shape.kernel, shape.stride, shape.padding
    image = x.permute(0, 2, 3, 1)
    padded = F.pad(image, (0, 0, p, p, p, p)) if p else image
    windows = padded.unfold(1, k, s).unfold(2, k, s).permute(0, 1, 2, 4, 5, 3)
    return windows.flatten(3).flatten(0, 2)
