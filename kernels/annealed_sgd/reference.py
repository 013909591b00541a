"""The update rule in plain torch, one segment at a time: what the kernels must equal, and the path of last resort."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seal_fast.kernels.annealed_sgd.buffers import Buffers
from seal_fast.kernels.annealed_sgd.layout import memory_order


def annealed_sgd_(
    buffers: Buffers, grads: Sequence[Tensor | None], grad_scale: Tensor | None, found_inf: Tensor | None
) -> None:
    """See `seal_fast.kernels.annealed_sgd`; arguments are as checked there."""
    ema, ema_decay, bf16, norms = buffers.ema, buffers.ema_decay, buffers.bf16, buffers.norms
    keep = None if found_inf is None else found_inf.reshape(()) != 0

    def store(target: Tensor, value: Tensor) -> None:
        target.copy_(value if keep is None else torch.where(keep, target, value))

    for begin, length, group, index, offset in buffers.segments.tolist():
        grad = grads[index]
        if grad is None or length == 0:
            continue
        here = slice(begin, begin + length)
        p, buf = buffers.param[here], buffers.momentum[here]
        g = memory_order(grad)[offset : offset + length].to(p.dtype)
        # Scalars stay 0-dimensional tensors: they neither promote p's type nor leave the device.
        lr, momentum, weight_decay, sign, lr_multiplier = buffers.hyper[group].unbind()
        step = sign * lr_multiplier * lr

        if grad_scale is not None:
            g = g * grad_scale.reshape(()).double().reciprocal()
        new_buf = momentum * buf + (g + weight_decay * p)
        update = step * new_buf
        # A frozen parameter keeps its bits, even where the buffer holds an infinity.
        new_p = torch.where(step == 0, p, p - update)

        if norms is not None:
            squares = torch.stack(
                [g.double().square().sum(), torch.where(step == 0, 0, update.double().square().sum())]
            )
            store(norms[group], norms[group] + squares)
        store(buf, new_buf)
        store(p, new_p)
        if ema is not None and ema_decay is not None:
            store(ema[here], ema[here] + (1 - ema_decay) * (new_p - ema[here]))
        if bf16 is not None:
            store(bf16[here], new_p.to(torch.bfloat16))
