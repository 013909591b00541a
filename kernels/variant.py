"""How to compile and check an op's Triton kernel on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VECTOR_BITS = 128
"""The widest global access of a thread that sm_80 and sm_90 have."""


@dataclass(frozen=True)
class Variant:
    """One specialisation of a kernel, as its launcher would ask for it.

    Each op lists its own in `kernels/<op>/variants.py`, from the constants its launcher uses.

    Attributes:
        op: the op, as its folder is called.
        name: what sets this one apart, such as `bf16-eval`.
        kernel: the function under `@triton.jit`.
        types: Triton's types of the run-time arguments, by name.
        constants: values of the compile-time arguments, by name; None for an optional tensor that is not given.
        warps: warps a program.
        elements: elements that a program's bulk path handles in one pass.
        bytes_read: bytes an element that any implementation must read, at least.
        bytes_written: bytes an element that any implementation must write.
        aligned: whether the launcher promises pointers at multiples of 16 bytes.
        readers: neighbouring threads that read the same byte, which then moves once.
        load_bits: narrowest bulk load of a thread that is right for this variant.
        store_bits: the same for stores.
        narrow: why those are below `VECTOR_BITS`.
    """

    op: str
    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int
    elements: int
    bytes_read: float
    bytes_written: float
    aligned: bool = True
    readers: int = 1
    load_bits: int = VECTOR_BITS
    store_bits: int = VECTOR_BITS
    narrow: str = ""
