"""Hands addresses to the native kernel of `annealed_sgd_`; everything has been checked by then."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from seal_fast.kernels import native
from seal_fast.kernels.annealed_sgd.flat import FlatParameters
from seal_fast.kernels.annealed_sgd.layout import tagged_addresses


class Update:
    """The native kernel on buffers that stay where they are. It finds the gradients itself.

    Args:
        table: torch's table of DLPack functions (kernels/tensors.h).
        others: see `native_update` in `seal_fast.kernels.annealed_sgd`; they are as checked there.

    Raises:
        ValueError: the table is of another DLPack, or cannot describe a parameter.
    """

    def __init__(
        self,
        table: Any,
        flat: FlatParameters,
        momentum_buffer: Tensor,
        hyper: Tensor,
        ema: Tensor | None,
        ema_decay: Tensor | None,
        bf16: Tensor | None,
        norms: Tensor | None,
    ) -> None:
        self._alive = (flat.buffer, momentum_buffer, flat.segments, hyper, ema, ema_decay, bf16, norms)
        self.plan = _plan(flat.buffer, momentum_buffer, flat.segments, hyper, ema, ema_decay, bf16, norms)
        places = native.require().gradient_places(table, flat.params)
        # The kernel writes through the flat buffers, but autograd watches the parameters.
        announce = functools.partial(increment_version, [*flat.params, *flat.copies_read])
        run = native.require().annealed_sgd_at_sight
        self._run = functools.partial(run, self.plan, places, flat.params, list(flat.copies_read), announce)

    def __call__(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> bool:
        """Update the parameters that have a gradient.

        Returns:
            False, and nothing is done, where a parameter was moved, a gradient is of another type or memory order, or
            an argument is no float32 number.
        """
        return self._run(grad_scale, found_inf)


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
    plan = _plan(param, momentum_buffer, segments, hyper, ema, ema_decay, bf16, norms)
    scalars = _address(grad_scale), _address(found_inf)
    native.require().annealed_sgd(plan, tagged_addresses(grads), parts, *scalars)


def _plan(
    param: Tensor,
    momentum_buffer: Tensor,
    segments: Tensor,
    hyper: Tensor,
    ema: Tensor | None,
    ema_decay: Tensor | None,
    bf16: Tensor | None,
    norms: Tensor | None,
) -> Any:
    """A capsule that holds addresses; the segments are read here, all others when it is run."""
    segments = segments.contiguous()
    return native.require().annealed_sgd_plan(
        param.dtype == torch.float64,
        *map(_address, (param, momentum_buffer, ema, bf16)),
        segments.data_ptr(),
        segments.shape[0],
        *map(_address, (hyper, ema_decay, norms)),
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
