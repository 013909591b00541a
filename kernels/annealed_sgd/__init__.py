"""`annealed_sgd_`: SGD with momentum whose sign and learning rate are numbers on the device, in one pass over a buffer.

For every element of a parameter in group k, with `lr, momentum, weight_decay, sign, lr_multiplier = hyper[k]`:

    g    = grad / grad_scale
    buf  = momentum * buf + (g + weight_decay * p)
    p    = p - sign * lr_multiplier * lr * buf              (sign +1 descends, -1 ascends, lr_multiplier 0 freezes)
    ema  = ema + (1 - ema_decay) * (p - ema)                (optional)
    bf16 = p, rounded to nearest even                       (optional)
    norms[k] += (sum of g^2, sum of (change of p)^2)        (optional)

and nothing at all if `found_inf` is set. The descent is `torch.optim.SGD`'s; the ascent of the early layers is SEAL's
simulated annealing (arXiv 2304.04858, section 3), where the sign flips after the momentum and not on the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seal_fast.kernels.annealed_sgd.buffers import HYPERPARAMETERS, Buffers
from seal_fast.kernels.annealed_sgd.flat import FlatParameters
from seal_fast.kernels.annealed_sgd.layout import segment_table, shard_table
from seal_fast.kernels.backend import resolve

__all__ = ["HYPERPARAMETERS", "Buffers", "FlatParameters", "annealed_sgd_", "segment_table", "shard_table"]

_library = torch.library.Library("seal_fast", "FRAGMENT")
_library.define(
    "annealed_sgd_(Tensor(a!) param, Tensor(b!) momentum, Tensor?[] grads, Tensor segments, Tensor hyper, *, "
    "Tensor(c!)? ema=None, Tensor? ema_decay=None, Tensor(d!)? bf16=None, Tensor(e!)? norms=None, "
    "Tensor? grad_scale=None, Tensor? found_inf=None, str backend='auto') -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def annealed_sgd_(
    buffers: Buffers,
    grads: Sequence[Tensor | None],
    *,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """Update `buffers` in place; all groups in one launch.

    Args:
        buffers: what is updated.
        grads: gradients that `buffers.segments` refers to, each dense and in the memory order of its parameter, of
            param's type or bfloat16. Where one is None, its parameters and all that belongs to them stay untouched.
        grad_scale: float32 scalar; gradients are divided by it (a `GradScaler`'s scale).
        found_inf: float32 scalar; anything but 0 turns the call into no operation.
        backend: see `seal_fast.kernels.backend.resolve`.

    Raises:
        ValueError: the tensors do not fit together; the message names the argument.
        BackendUnavailable: a named backend cannot run here.
    """
    b = buffers
    optional = dict(ema=b.ema, ema_decay=b.ema_decay, bf16=b.bf16, norms=b.norms)
    torch.ops.seal_fast.annealed_sgd_.default(
        b.param, b.momentum, grads, b.segments, b.hyper,
        **optional, grad_scale=grad_scale, found_inf=found_inf, backend=backend,
    )  # fmt: skip


def _run(
    param: Tensor,
    momentum: Tensor,
    grads: list[Tensor | None],
    segments: Tensor,
    hyper: Tensor,
    *,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    backend: str = "auto",
    **optional: Any,
) -> None:
    buffers = Buffers(param, momentum, segments, hyper, **optional)
    buffers.check(grads, grad_scale, found_inf)
    chosen = resolve("annealed_sgd_", backend, param.device)
    if chosen == "native":
        from seal_fast.kernels.annealed_sgd.native import annealed_sgd_ as run
    elif chosen == "triton":
        from seal_fast.kernels.annealed_sgd.triton import annealed_sgd_ as run
    else:
        from seal_fast.kernels.annealed_sgd.reference import annealed_sgd_ as run
    run(buffers, grads, grad_scale, found_inf)


_library.impl("annealed_sgd_", _run, "CompositeExplicitAutograd")
torch.library.register_fake("seal_fast::annealed_sgd_", lambda *args, **kwargs: None, lib=_library)
