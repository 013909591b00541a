"""`annealed_sgd_`: SGD with momentum whose sign and strength are numbers on the device, in one pass over a flat buffer.

For every element of a parameter in group k, with `lr, momentum, weight_decay, sign, lr_multiplier = hyper[k]`:

    g    = grad / grad_scale
    buf  = momentum * buf + (g + weight_decay * p)
    p    = p - sign * lr_multiplier * lr * buf                 (sign +1 descends, -1 ascends, lr_multiplier 0 freezes)
    ema  = ema + (1 - ema_decay) * (p - ema)                (optional)
    bf16 = p, rounded to nearest even                       (optional)
    norms[k] += (sum of g^2, sum of (change of p)^2)        (optional)

and nothing at all if `found_inf` is set. The descent is `torch.optim.SGD`'s; the ascent of the early layers is SEAL's
simulated annealing (arXiv 2304.04858, section 3), where the sign flips after the momentum and not on the gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from seal_fast.kernels.annealed_sgd import plan
from seal_fast.kernels.annealed_sgd.flat import FlatParameters
from seal_fast.kernels.annealed_sgd.layout import is_dense, segment_table, shard_table
from seal_fast.kernels.annealed_sgd.reference import added_up
from seal_fast.kernels.backend import resolve

__all__ = ["HYPERPARAMETERS", "FlatParameters", "annealed_sgd_", "native_update", "segment_table", "shard_table"]

# The columns of the `hyper` table.
HYPERPARAMETERS: tuple[str, ...] = ("lr", "momentum", "weight_decay", "sign", "lr_multiplier")

_library = torch.library.Library("seal_fast", "FRAGMENT")
_library.define(
    "annealed_sgd_(Tensor(a!) param, Tensor(b!) momentum_buffer, Tensor?[] grads, Tensor segments, Tensor hyper, *, "
    "Tensor? grad_scale=None, Tensor? found_inf=None, Tensor(c!)? ema=None, Tensor? ema_decay=None, "
    "Tensor(d!)? bf16=None, Tensor(e!)? norms=None, int parts=1, "
    "str backend='auto') -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def annealed_sgd_(
    param: Tensor,
    momentum_buffer: Tensor,
    grads: Sequence[Tensor | None],
    segments: Tensor,
    hyper: Tensor,
    *,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    ema: Tensor | None = None,
    ema_decay: Tensor | None = None,
    bf16: Tensor | None = None,
    norms: Tensor | None = None,
    parts: int = 1,
    backend: str = "auto",
) -> None:
    """Update a flat buffer of parameters, or any contiguous slice of one, in place; all groups in one launch.

    Args:
        param: flat weights [n], float32 or float64.
        momentum_buffer: flat momentum [n], of the same type.
        grads: gradients that `segments` refers to, each dense and in the memory order of its parameter, of param's type
            or bfloat16. Where one is None, its parameters and all that belongs to them stay untouched.
        segments: int64 [parameters, 5] on the CPU, from `segment_table` or `shard_table`. What lies between segments is
            never read or written.
        hyper: float64 [groups, 5] on param's device, columns as in `HYPERPARAMETERS`.
        grad_scale: float32 scalar; gradients are divided by it (a `GradScaler`'s scale).
        found_inf: float32 scalar; anything but 0 turns the call into no operation.
        ema: flat running average of the weights [n], of param's type. Needs `ema_decay`.
        ema_decay: float64 scalar.
        bf16: bfloat16 [n], receives the rounded new weights.
        norms: float64 [groups, 2], to which the squared norms of gradient (unscaled, before weight decay) and update
            are added.
        parts: every gradient is the sum of so many, added up in the weights' type: `grads` then holds the first part of
            all gradients, the second part of all, and so on.
        backend: see `seal_fast.kernels.backend.resolve`.

    Raises:
        ValueError: the tensors do not fit together; the message names the argument.
        BackendUnavailable: a named backend cannot run here.
    """
    torch.ops.seal_fast.annealed_sgd_.default(
        param,
        momentum_buffer,
        grads,
        segments,
        hyper,
        grad_scale=grad_scale,
        found_inf=found_inf,
        ema=ema,
        ema_decay=ema_decay,
        bf16=bf16,
        norms=norms,
        parts=parts,
        backend=backend,
    )


def native_update(
    flat: FlatParameters,
    momentum_buffer: Tensor,
    hyper: Tensor,
    *,
    ema: Tensor | None = None,
    ema_decay: Tensor | None = None,
    bf16: Tensor | None = None,
    norms: Tensor | None = None,
) -> Callable[[Tensor | None, Tensor | None], bool] | None:
    """`annealed_sgd_` by the native kernel on buffers that stay where they are; it looks for the gradients itself.

    After a backward pass nothing of an optimiser is in the processor's caches any more: what the host did before a
    ResNet's update then took a sixth of its time (docs/kernels.md). So the buffers are checked here, once, and an
    update is a single call, past torch's dispatcher.

    Args: as for `annealed_sgd_`; `flat` has the weights, the segments and the gradients.

    Returns:
        What updates, given grad_scale and found_inf, and tells autograd so. It returns False, with nothing done, where
        a parameter was moved, a gradient is not as its parameter is, or an argument is no float32 number: then
        `flat.gradients()` and `annealed_sgd_` say what is wrong, or use a copy. None where this torch cannot show its
        tensors to C++.

    Raises:
        ValueError: the tensors do not fit together.
    """
    from seal_fast.kernels.annealed_sgd.native import Update

    grads: list[Tensor | None] = [None] * len(flat.params)
    optional = ema, ema_decay, bf16, norms
    _check(flat.buffer, momentum_buffer, grads, flat.segments, hyper, None, None, *optional, 1)
    table = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    with contextlib.suppress(ValueError):
        return table and Update(table, flat, momentum_buffer, hyper, *optional)
    return None


def _run(
    param: Tensor,
    momentum_buffer: Tensor,
    grads: list[Tensor | None],
    segments: Tensor,
    hyper: Tensor,
    *,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    ema: Tensor | None = None,
    ema_decay: Tensor | None = None,
    bf16: Tensor | None = None,
    norms: Tensor | None = None,
    parts: int = 1,
    backend: str = "auto",
) -> None:
    optional = (grad_scale, found_inf, ema, ema_decay, bf16, norms)
    _check(param, momentum_buffer, grads, segments, hyper, *optional, parts)
    chosen = resolve("annealed_sgd_", backend, param.device)
    if chosen == "native":
        from seal_fast.kernels.annealed_sgd.native import annealed_sgd_ as native

        native(param, momentum_buffer, grads, segments, hyper, *optional, parts)
        return
    grads = added_up(grads, parts, param.dtype)
    if chosen == "triton":
        from seal_fast.kernels.annealed_sgd.triton import annealed_sgd_ as run
    else:
        from seal_fast.kernels.annealed_sgd.reference import annealed_sgd_ as run
    run(param, momentum_buffer, grads, segments, hyper, *optional)


_library.impl("annealed_sgd_", _run, "CompositeExplicitAutograd")


@torch.library.register_fake("seal_fast::annealed_sgd_", lib=_library)
def _fake(*args, **kwargs) -> None:
    return None


def _check(
    param: Tensor,
    momentum_buffer: Tensor,
    grads: list[Tensor | None],
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
    """Everything the kernels take for granted; they get raw addresses."""
    n, dtype, device = param.numel(), param.dtype, param.device
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"annealed_sgd_: param must be float32 or float64, not {dtype}")
    if (ema is None) != (ema_decay is None):
        raise ValueError("annealed_sgd_: give ema and ema_decay together, or neither")
    groups = hyper.shape[0]
    for name, tensor, shape, kind in (
        ("param", param, (n,), dtype),
        ("momentum_buffer", momentum_buffer, (n,), dtype),
        ("ema", ema, (n,), dtype),
        ("bf16", bf16, (n,), torch.bfloat16),
        ("hyper", hyper, (groups, len(HYPERPARAMETERS)), torch.float64),
        ("norms", norms, (groups, 2), torch.float64),
    ):
        if tensor is None:
            continue
        if tensor.shape != shape or tensor.dtype != kind or tensor.device != device or not tensor.is_contiguous():
            raise ValueError(
                f"annealed_sgd_: {name} must be a contiguous {kind} tensor of shape {list(shape)} on {device}, "
                f"not {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            )
    for name, tensor, kind in (
        ("grad_scale", grad_scale, torch.float32),
        ("found_inf", found_inf, torch.float32),
        ("ema_decay", ema_decay, torch.float64),
    ):
        if tensor is not None and (tensor.numel() != 1 or tensor.dtype != kind or tensor.device != device):
            raise ValueError(f"annealed_sgd_: {name} must be one {kind} number on {device}")

    if parts < 1 or len(grads) % parts:
        raise ValueError(f"annealed_sgd_: {len(grads)} gradients are no {parts} parts of each")
    needed = plan.elements_needed(segments, n, groups, len(grads) // parts)
    present = [g is not None for g in grads]
    if present != present[: len(needed)] * parts:
        raise ValueError("annealed_sgd_: a gradient has some of its parts and lacks others")
    _check_gradients(param, grads, needed * parts)


def _check_gradients(param: Tensor, grads: list[Tensor | None], needed: Sequence[int]) -> None:
    given = [g for g in grads if g is not None]
    # A network has hundreds of gradients and this runs every step: whole-list questions first, the culprit only then.
    kinds = {g.dtype for g in given}
    if not kinds <= {param.dtype, torch.bfloat16} or not set(map(Tensor.get_device, given)) <= {param.get_device()}:
        found = ", ".join(sorted({f"{g.dtype} on {g.device}" for g in given}))
        raise ValueError(
            f"annealed_sgd_: gradients must be {param.dtype} or bfloat16, on {param.device}; they are {found}"
        )
    for index, (g, elements) in enumerate(zip(grads, needed, strict=True)):
        if g is not None and (g.numel() < elements or not (g.is_contiguous() or is_dense(g))):
            raise ValueError(
                f"annealed_sgd_: gradient {index} must be dense, with at least {elements} elements; "
                f"it has shape {list(g.shape)} and strides {list(g.stride())}"
            )
