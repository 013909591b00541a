"""Max-pooling in plain torch: the meaning of `max_pool`, and what runs on a GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def max_pool(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """See `seal_fast.kernels.max_pool`; differentiable as often as one likes, on any device."""
    return F.max_pool2d(x, kernel, stride, padding)


def at_taps(x: Tensor, taps: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """The values of x [N, C, H, W] that windows took, by their taps [N, C, H', W']: the gradient's own gradient."""
    rows, columns = (torch.arange(n, device=x.device) * stride - padding for n in taps.shape[2:])
    taps = taps.long()
    index = (rows[:, None] + taps // kernel) * x.shape[3] + columns + taps % kernel
    return x.flatten(2).gather(2, index.flatten(2)).view(taps.shape)
