"""Hands addresses to the native kernel of `annealed_sgd_`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seal_fast.kernels import native
from seal_fast.kernels.annealed_sgd.buffers import Buffers
from seal_fast.kernels.annealed_sgd.layout import tagged_addresses


def annealed_sgd_(
    buffers: Buffers, grads: Sequence[Tensor | None], grad_scale: Tensor | None, found_inf: Tensor | None
) -> None:
    """See `seal_fast.kernels.annealed_sgd`; arguments are as checked there."""
    b, segments = buffers, buffers.segments.contiguous()
    tensors = (b.param, b.momentum, b.ema, b.bf16, segments, b.hyper, b.ema_decay, b.norms, grad_scale, found_inf)
    is_double, addresses = b.param.dtype == torch.float64, map(native.address, tensors)
    native.require().annealed_sgd(is_double, len(segments), tagged_addresses(grads), *addresses)
