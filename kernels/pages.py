"""Huge pages: asked of Linux for memory that is streamed through or used all the time, granted where it will."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

import torch
from torch import Tensor

_HUGE = 2 << 20
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25
_DATA = 1 << 30  # bytes; more than a program's own objects take
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
    _advise(address, size, _MADV_HUGEPAGE)


def gather_into_huge_pages() -> None:
    """Have Linux (6.1 or newer) put the small pages of this process together into huge ones.

    A training step goes over thousands of small objects, Python's and torch's, allocated before anyone knew that they
    would be used a million times, each in a page that the processor has no translation for any more. Mappings so large
    that they must be data are left out, because all is copied: mappings of 280 MB in 1.2 s on a virtual machine.
    """
    try:
        mappings = Path("/proc/self/maps").read_text().splitlines()
    except OSError:  # another system
        return
    for mapping in mappings:
        place, permissions, _, _, _, *name = mapping.split(maxsplit=5)
        begin, end = (int(side, 16) for side in place.split("-"))
        if permissions == "rw-p" and name in ([], ["[heap]"]) and end - begin < _DATA:
            _advise(begin, end - begin, _MADV_HUGEPAGE)
            _advise(begin, end - begin, _MADV_COLLAPSE)


def _advise(address: int, size: int, advice: int) -> None:
    begin = -(-address // _HUGE) * _HUGE
    length = (address + size - begin) // _HUGE * _HUGE
    if length > 0:
        with contextlib.suppress(OSError, AttributeError):  # a C library without madvise
            ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), advice)
