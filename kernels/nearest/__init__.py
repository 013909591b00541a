"""`nearest`: keeps the k nearest rows of a bank that streams by, by filter and refine.

A matrix product in low precision (`prepare` makes its operands) bounds every squared distance from below and above;
`update_` computes exactly, in float64, those alone which the bounds leave in doubt. Nothing is estimated: the bounds
are those of the dot product (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1) plus what the
operands lost when they were rounded, measured row by row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seal_fast.kernels import native
from seal_fast.kernels.backend import resolve
from seal_fast.kernels.nearest import reference

_FILTERS = torch.bfloat16, torch.float32


def prepare(
    x: Tensor, centre: Tensor, scale: float, dtype: torch.dtype, backend: str = "auto"
) -> tuple[Tensor, Tensor, float]:
    """Operands of the filter's product: (x - centre) * scale, rounded to `dtype`.

    Args:
        x: [N, D], floating point.
        centre: float32 [D].
        scale: a power of two.
        dtype: bfloat16 or float32.
        backend: "auto", "reference" or "native".

    Returns:
        The rounded rows [N, D]; norms of the rows before rounding, float64 [N]; and the largest norm, relative to its
        row's, of what rounding took from a row.

    Raises:
        BackendUnavailable: `backend="native"` where it cannot run.
    """
    small = torch.empty(x.shape, dtype=dtype, device=x.device)
    norms = torch.empty(len(x), dtype=torch.float64, device=x.device)
    if not _is_native(backend, x) or dtype not in _FILTERS:
        return small, norms, reference.prepare(x, centre, scale, small, norms)
    x, centre = x.contiguous(), centre.contiguous()
    run = getattr(native.require(), f"nearest_prepare_{str(dtype).removeprefix('torch.')}")
    worst = run(x.data_ptr(), centre.data_ptr(), small.data_ptr(), norms.data_ptr(), *x.shape, scale)
    return small, norms, worst


def update_(
    distances: Tensor,
    rows: Tensor,
    queries: Tensor,
    query_norms: Tensor,
    block: Tensor,
    block_norms: Tensor,
    products: Tensor,
    first: int,
    exclude: Tensor | None,
    scale: float,
    error: float,
    rounding: float,
    slack: float,
    backend: str = "auto",
) -> None:
    """Let the rows of a block into the lists of nearest ones, in place.

    Lists are sorted by (distance, row); unused places hold an infinite distance and row -1. For the shifted and scaled
    query q and row b and their product p the caller vouches for |p - q.b| <= error |q| |b| + rounding |p|, and for
    (1 +- slack) (|q|^2 + |b|^2) to hold all else that is rounded.

    Args:
        distances: squared ones of the k nearest rows so far, float64 [Q, k].
        rows: theirs, int64 [Q, k].
        queries: [Q, D] as given, floating point.
        query_norms: of the prepared queries, float64 [Q].
        block: [B, D] as given.
        block_norms: float64 [B].
        products: of the prepared rows, [Q, B], bfloat16 or float32.
        first: row number of the block's first row.
        exclude: int64 [Q], a row that does not count for a query, or None.
        scale: of `prepare`.
        error: relative to |q| |b|.
        rounding: relative to the product.
        slack: relative to |q|^2 + |b|^2.
        backend: "auto", "reference" or "native".

    Raises:
        BackendUnavailable: `backend="native"` where it cannot run.
    """
    tensors = distances, rows, queries, query_norms, block, block_norms, products
    numbers = first, scale, error, rounding, slack
    native_runs = _is_native(backend, queries) and block.dtype == torch.float32 and products.dtype in _FILTERS
    if not native_runs:
        reference.update_(*tensors, first, exclude, *numbers[1:])
        return
    if not (distances.is_contiguous() and rows.is_contiguous()):
        raise ValueError("nearest: distances and rows must be contiguous, for they are written in place")
    kept = [t.contiguous() for t in tensors]
    excluded = None if exclude is None else exclude.contiguous()
    run = getattr(native.require(), f"nearest_update_{str(products.dtype).removeprefix('torch.')}")
    addresses = [t.data_ptr() for t in kept]
    run(
        *addresses,
        0 if excluded is None else excluded.data_ptr(),
        len(queries),
        len(block),
        queries.shape[1],
        distances.shape[1],
        *numbers,
    )


def _is_native(backend: str, x: Tensor) -> bool:
    # A GPU has no kernel of its own here: the reference is few launches over large matrices.
    if backend == "reference" or (backend == "auto" and x.device.type != "cpu"):
        return False
    return resolve("nearest", backend, x.device) == "native" and x.dtype == torch.float32
