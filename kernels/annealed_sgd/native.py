"""Hands addresses to the native kernel of `annealed_sgd_`; everything has been checked by then."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import native
from .layout import tagged_address


def annealed_sgd_(
    param: Tensor,
    momentum_buffer: Tensor,
    grads: Sequence[Tensor | None],
    segments: Tensor,
    hyper: Tensor,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    ema: Tensor | None,
    ema_decay: Tensor | None,
    bf16: Tensor | None,
    norms: Tensor | None,
    parts: int,
) -> None:
    """See `seal_fast.kernels.annealed_sgd`; arguments are as checked there."""
    segments = segments.contiguous()
    native.require().annealed_sgd(
        param.dtype == torch.float64,
        param.data_ptr(),
        momentum_buffer.data_ptr(),
        _address(ema),
        _address(bf16),
        [*map(tagged_address, grads)],
        parts,
        segments.data_ptr(),
        segments.shape[0],
        hyper.data_ptr(),
        _address(grad_scale),
        _address(found_inf),
        _address(ema_decay),
        _address(norms),
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
