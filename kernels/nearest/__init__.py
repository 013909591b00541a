"""`nearest`: keeps the k nearest rows of a bank that streams by, by filter and refine.

A matrix product in low precision (`prepare` makes its operands) bounds every squared distance from below and above;
`update_` computes exactly, in float64, those alone which the bounds leave in doubt. Nothing is estimated: the bounds
are those of the dot product (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1) plus what the
operands lost when they were rounded, measured row by row. Neither half is differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seal_fast.kernels import native
from seal_fast.kernels.backend import is_native
from seal_fast.kernels.nearest import reference
from seal_fast.kernels.torch_private import transforming

_FILTERS = torch.bfloat16, torch.float32


@torch.no_grad()
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
    worst = native.function("nearest_prepare", dtype)(
        x.data_ptr(), centre.data_ptr(), small.data_ptr(), norms.data_ptr(), *x.shape, scale
    )
    return small, norms, worst


@torch.no_grad()
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
    numbers = scale, error, rounding, slack
    if not (_is_native(backend, queries) and block.dtype == torch.float32 and products.dtype in _FILTERS):
        reference.update_(*tensors, first, exclude, *numbers)
        return
    if not (distances.is_contiguous() and rows.is_contiguous()):
        raise ValueError("nearest: distances and rows must be contiguous, for they are written in place")
    kept = [None if t is None else t.contiguous() for t in (*tensors, exclude)]
    sizes = len(queries), len(block), queries.shape[1], distances.shape[1]
    native.function("nearest_update", products.dtype)(*map(native.address, kept), *sizes, first, *numbers)


def _is_native(backend: str, x: Tensor) -> bool:
    return is_native("nearest", backend, x.device.type) and x.dtype == torch.float32 and not transforming()
