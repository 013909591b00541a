"""`gram_schmidt`: the two halves of orthogonalising a vector against many, which are narrower than the arithmetic.

The rows are float32 (or float64), the vector and all sums float64. Each half reads the rows once; that is what it
costs, so the native kernel converts them in registers, where plain torch writes every row out in float64 first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seal_fast.kernels import native
from seal_fast.kernels.backend import resolve
from seal_fast.kernels.gram_schmidt import reference

_DTYPES = torch.float32, torch.float64


def dots(rows: Tensor, vector: Tensor, backend: str = "auto") -> Tensor:
    """Dot products of a vector with many, the same to the bit whatever the number of threads.

    Args:
        rows: [k, n], float32 or float64.
        vector: float64 [n].
        backend: "auto", "reference" or "native".

    Returns:
        float64 [k].

    Raises:
        ValueError: the vector is not float64, or not as long as the rows.
        BackendUnavailable: `backend="native"` where it cannot run.
    """
    _check(vector, rows)
    if not _is_native(backend, rows):
        return reference.dots(rows, vector)
    rows, vector = rows.contiguous(), vector.contiguous()
    found = torch.empty(len(rows), dtype=torch.float64)
    run = getattr(native.require(), f"gram_schmidt_dots_{str(rows.dtype).removeprefix('torch.')}")
    run(rows.data_ptr(), vector.data_ptr(), found.data_ptr(), *rows.shape)
    return found


def subtract_(vector: Tensor, rows: Tensor, coefficients: Tensor, backend: str = "auto") -> None:
    """Take a combination of the rows from the vector, in place: vector -= coefficients @ rows.

    Args:
        vector: float64 [n].
        rows: [k, n], float32 or float64.
        coefficients: float64 [k].
        backend: "auto", "reference" or "native".

    Raises:
        ValueError: vector or coefficients are not float64, or their lengths do not fit the rows.
        BackendUnavailable: `backend="native"` where it cannot run.
    """
    _check(vector, rows)
    if coefficients.dtype != torch.float64 or coefficients.shape != rows.shape[:1]:
        raise ValueError("gram_schmidt: coefficients must be float64, one for each row")
    if not _is_native(backend, rows):
        reference.subtract_(vector, rows, coefficients)
        return
    if not vector.is_contiguous():
        raise ValueError("gram_schmidt: the vector must be contiguous, for it is written in place")
    rows, coefficients = rows.contiguous(), coefficients.contiguous()
    run = getattr(native.require(), f"gram_schmidt_subtract_{str(rows.dtype).removeprefix('torch.')}")
    run(vector.data_ptr(), rows.data_ptr(), coefficients.data_ptr(), *rows.shape)


def _check(vector: Tensor, rows: Tensor) -> None:
    if vector.dtype != torch.float64 or vector.dim() != 1 or rows.dim() != 2 or rows.shape[1] != len(vector):
        raise ValueError("gram_schmidt: the vector must be float64 and as long as each row")


def _is_native(backend: str, rows: Tensor) -> bool:
    # A GPU has no kernel of its own here: the reference is few launches over large matrices.
    if backend == "reference" or (backend == "auto" and rows.device.type != "cpu"):
        return False
    return resolve("gram_schmidt", backend, rows.device) == "native" and rows.dtype in _DTYPES
