"""Memory for the flat buffers: on a CPU under Linux in huge pages, where the system grants them on request."""

from __future__ import annotations

import contextlib
import ctypes
import sys

import torch
from torch import Tensor

_HUGE = 2 << 20
_MADV_HUGEPAGE = 14


def flat_zeros(elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros [elements].

    An update streams through more pages of 4 KiB than the processor has translations for. Whole stretches of 2 MiB are
    therefore offered to the kernel as huge pages before their first use; what it declines stays as it is.
    """
    wide = device.type == "cpu" and elements * dtype.itemsize >= _HUGE
    if not wide or sys.platform != "linux":
        return torch.zeros(elements, dtype=dtype, device=device)
    spare = _HUGE // dtype.itemsize
    memory = torch.empty(elements + spare, dtype=dtype, device=device)
    begin = -memory.data_ptr() % _HUGE // dtype.itemsize
    buffer = memory[begin : begin + elements]
    whole = elements * dtype.itemsize // _HUGE * _HUGE
    with contextlib.suppress(OSError, AttributeError):  # a C library without madvise
        ctypes.CDLL(None).madvise(ctypes.c_void_p(buffer.data_ptr()), ctypes.c_size_t(whole), _MADV_HUGEPAGE)
    return buffer.zero_()
