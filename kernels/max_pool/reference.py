"""Max-pooling in plain torch: the meaning of `max_pool`, and what runs on a GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def max_pool(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """See `seal_fast.kernels.max_pool`; differentiable as often as one likes, on any device."""
    return F.max_pool2d(x, kernel, stride, padding)


def backward(grad: Tensor, taps: Tensor, height: int, width: int, kernel: int, stride: int, padding: int) -> Tensor:
    """The gradient of x [N, C, height, width] from that of the result, by the taps [N, C, H', W'] that were largest."""
    rows, columns = (torch.arange(n, device=grad.device) * stride - padding for n in taps.shape[2:])
    taps = taps.long()
    index = (rows[:, None] + taps // kernel) * width + columns + taps % kernel
    sums = grad.new_zeros(*grad.shape[:2], height * width).scatter_add(2, index.flatten(2), grad.flatten(2))
    return sums.view(*grad.shape[:2], height, width)
