"""BatchNorm, residual addition and ReLU in plain torch: the meaning of `norm_act`, and what runs on a GPU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
    residual: Tensor | None,
    act: bool,
) -> Tensor:
    """See `seal_fast.kernels.norm_act`; differentiable as often as one likes, on any device."""
    y = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    if residual is not None:
        y = y + residual
    return F.relu(y) if act else y
