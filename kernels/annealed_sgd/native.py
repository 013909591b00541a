"""Hands addresses to the native kernel of `annealed_sgd_`; everything has been checked by then."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import native
from .layout import tagged_addresses


class Update:
    """The native kernel and the buffers it works on, whose addresses are looked up once.

    Args: see `seal_fast.kernels.annealed_sgd`; they are as checked there.
    """

    def __init__(
        self,
        param: Tensor,
        momentum_buffer: Tensor,
        segments: Tensor,
        hyper: Tensor,
        ema: Tensor | None,
        ema_decay: Tensor | None,
        bf16: Tensor | None,
        norms: Tensor | None,
        parts: int = 1,
    ) -> None:
        segments = segments.contiguous()
        self._alive = (param, momentum_buffer, segments, hyper, ema, ema_decay, bf16, norms)
        self._run = native.require().annealed_sgd
        self._buffers = param.dtype == torch.float64, *map(_address, (param, momentum_buffer, ema, bf16))
        self._tables = parts, segments.data_ptr(), segments.shape[0], hyper.data_ptr()
        self._ema_decay, self._norms = _address(ema_decay), _address(norms)

    def __call__(self, addresses: list[int], grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Update the parameters that have a gradient; theirs are `tagged_addresses`."""
        scalars = _address(grad_scale), _address(found_inf), self._ema_decay, self._norms
        self._run(*self._buffers, addresses, *self._tables, *scalars)


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
    update = Update(param, momentum_buffer, segments, hyper, ema, ema_decay, bf16, norms, parts)
    update(tagged_addresses(grads), grad_scale, found_inf)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
