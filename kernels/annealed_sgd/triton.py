"""`annealed_sgd_` on the GPU: one launch over all groups, one program a tile of one parameter.

A tile knows its place, group and gradient from a table made once (`plan.tiles`); gradients stay where autograd left
them and are reached through a table of addresses. Full tiles take a branch without masks, whose loads and stores are
128 bits wide. The launch configuration is fixed: autotuning would run a kernel that writes in place more than once.
"""

# What Triton's compiler reads is not quite Python.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from seal_fast.kernels.annealed_sgd import plan
from seal_fast.kernels.annealed_sgd.buffers import Buffers
from seal_fast.kernels.annealed_sgd.layout import tagged_addresses

# Elements a program handles: 8 a thread, the least with which even the bfloat16 copy is written 128 bits wide.
BLOCK = 1024
TAIL = 512
WARPS = 4
# 128 bits of the narrowest type (bfloat16) are 8 elements.
ALIGNED_ELEMENTS = 8


@triton.jit
def _load(address, place, mask, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Gradients of one type, from a plain address."""
    grad = address.to(tl.pointer_type(TYPE))
    if ALIGNED:
        # The compiler cannot see through a table; this promise (checked by the caller) makes accesses 128 bits wide.
        grad = tl.multiple_of(grad, 16)
    return tl.load(grad + place, mask=mask)


@triton.jit
def _gradient(tagged, place, mask, dtype: tl.constexpr, OWN: tl.constexpr, BF16: tl.constexpr, ALIGNED: tl.constexpr):
    """Gradients from a tagged address, in the weights' type; OWN and BF16 say which types occur at all."""
    if OWN and BF16:
        if tagged & 1:
            g = _load(tagged - 1, place, mask, tl.bfloat16, ALIGNED).to(dtype)
        else:
            g = _load(tagged, place, mask, dtype, ALIGNED)
    elif BF16:
        g = _load(tagged - 1, place, mask, tl.bfloat16, ALIGNED).to(dtype)
    else:
        g = _load(tagged, place, mask, dtype, ALIGNED)
    return g


@triton.jit
def _update(
    param, momentum_buffer, g, ema, bf16, at, mask,
    inv_scale, momentum, weight_decay, step, ema_new, WITH_NORMS: tl.constexpr,
):  # fmt: skip
    """The rule for one tile; `at` are its places in the flat buffers, `g` its gradients."""
    p = tl.load(param + at, mask=mask)
    old_buf = tl.load(momentum_buffer + at, mask=mask)
    g = g * inv_scale
    buf = momentum * old_buf + (g + weight_decay * p)
    delta = step * buf
    # A frozen parameter keeps its bits, even where the buffer holds an infinity.
    new_p = tl.where(step == 0, p, p - delta)
    tl.store(momentum_buffer + at, buf, mask=mask)
    tl.store(param + at, new_p, mask=mask)
    if ema is not None:
        old = tl.load(ema + at, mask=mask)
        tl.store(ema + at, old + ema_new * (new_p - old), mask=mask)
    if bf16 is not None:
        tl.store(bf16 + at, new_p.to(tl.float32).to(tl.bfloat16), mask=mask)
    grad_square = tl.full((), 0.0, tl.float64)
    update_square = tl.full((), 0.0, tl.float64)
    if WITH_NORMS:
        moved = tl.where(step == 0, 0.0, delta)
        if mask is not None:
            g = tl.where(mask, g, 0.0)
            moved = tl.where(mask, moved, 0.0)
        g = g.to(tl.float64)
        moved = moved.to(tl.float64)
        grad_square = tl.sum(g * g)
        update_square = tl.sum(moved * moved)
    return grad_square, update_square


@triton.jit
def annealed_sgd_kernel(
    param, momentum_buffer, grads, tiles, hyper, grad_scale, found_inf, ema, ema_decay, bf16, norms,
    OWN: tl.constexpr, BF16: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """One program a row of `tiles`; whatever is None costs nothing."""
    if found_inf is not None:
        if tl.load(found_inf) != 0:
            return
    row = tiles + tl.program_id(0) * 5
    begin = tl.load(row)
    count = tl.load(row + 1)
    group = tl.load(row + 2)
    tagged = tl.load(grads + tl.load(row + 3))
    offset = tl.load(row + 4)
    if tagged == 0:  # no gradient
        return

    numbers = hyper + group * 5
    dtype = param.dtype.element_ty
    step = (tl.load(numbers + 3) * tl.load(numbers + 4) * tl.load(numbers)).to(dtype)
    momentum = tl.load(numbers + 1).to(dtype)
    weight_decay = tl.load(numbers + 2).to(dtype)
    inv_scale = tl.full((), 1.0, dtype)
    if grad_scale is not None:
        inv_scale = (1.0 / tl.load(grad_scale).to(tl.float64)).to(dtype)
    ema_new = tl.full((), 0.0, dtype)
    if ema is not None:
        ema_new = (1.0 - tl.load(ema_decay)).to(dtype)

    if ALIGNED:
        begin = tl.multiple_of(begin, 8)
        offset = tl.multiple_of(offset, 8)
    grad_square = tl.full((), 0.0, tl.float64)
    update_square = tl.full((), 0.0, tl.float64)
    if ALIGNED and count == BLOCK:
        place = tl.arange(0, BLOCK)
        g = _gradient(tagged, offset + place, None, dtype, OWN, BF16, ALIGNED)
        grad_square, update_square = _update(
            param, momentum_buffer, g, ema, bf16, begin + place, None,
            inv_scale, momentum, weight_decay, step, ema_new, norms is not None,
        )  # fmt: skip
    else:
        # In small pieces, because masks over a whole tile would cost the full tiles three times their registers.
        for start in range(0, count, TAIL):
            place = start + tl.arange(0, TAIL)
            g = _gradient(tagged, offset + place, place < count, dtype, OWN, BF16, ALIGNED)
            squares = _update(
                param, momentum_buffer, g, ema, bf16, begin + place, place < count,
                inv_scale, momentum, weight_decay, step, ema_new, norms is not None,
            )  # fmt: skip
            grad_square += squares[0]
            update_square += squares[1]
    if norms is not None:
        tl.atomic_add(norms + group * 2, grad_square, sem="relaxed")
        tl.atomic_add(norms + group * 2 + 1, update_square, sem="relaxed")


def annealed_sgd_(
    buffers: Buffers, grads: Sequence[Tensor | None], grad_scale: Tensor | None, found_inf: Tensor | None
) -> None:
    """See `seal_fast.kernels.annealed_sgd`; arguments are as checked there."""
    b = buffers
    segments = plan.contents(b.segments)
    tiles = plan.tiles(segments, BLOCK, b.param.device)
    if len(tiles) == 0:
        return
    addresses = tuple(tagged_addresses(grads))
    pointers = [t.data_ptr() for t in (b.param, b.momentum, b.ema, b.bf16) if t is not None]
    aligned = plan.aligned(segments, ALIGNED_ELEMENTS) and all(a % 16 <= 1 for a in (*addresses, *pointers))
    table = _address_table(addresses, b.param.device)
    annealed_sgd_kernel[(len(tiles),)](
        b.param, b.momentum, table, tiles, b.hyper, grad_scale, found_inf, b.ema, b.ema_decay, b.bf16, b.norms,
        OWN=any(a % 2 == 0 for a in addresses), BF16=any(a % 2 for a in addresses), ALIGNED=aligned,
        BLOCK=BLOCK, TAIL=TAIL, num_warps=WARPS,
    )  # fmt: skip


# Pinned memory for tables in CUDA graphs, by length: one that the next graph may take, and those that were taken.
_spare: dict[int, Tensor] = {}
_taken: list[Tensor] = []


def _address_table(addresses: tuple[int, ...], device: torch.device) -> Tensor:
    if device.type != "cuda":
        return _cached_address_table(addresses, device)
    if torch.cuda.is_current_stream_capturing():
        # Memory must not be pinned now. A replay copies the table anew, so what it copies from is never given back.
        if len(addresses) not in _spare:
            raise RuntimeError("annealed_sgd_: update once before recording a CUDA graph")
        _taken.append(_spare.pop(len(addresses)).copy_(torch.tensor(addresses)))
        return _taken[-1].to(device, non_blocking=True)
    if len(addresses) not in _spare:
        _spare[len(addresses)] = torch.empty(len(addresses), dtype=torch.int64, pin_memory=True)
    return _cached_address_table(addresses, device)


# Autograd's gradients keep returning to the same addresses, so a step mostly copies nothing.
@functools.lru_cache(maxsize=16)
def _cached_address_table(addresses: tuple[int, ...], device: torch.device) -> Tensor:
    pinned = device.type == "cuda"
    return torch.tensor(addresses, dtype=torch.int64, pin_memory=pinned).to(device, non_blocking=True)
