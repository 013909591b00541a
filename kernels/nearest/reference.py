"""The two halves of `nearest` in plain torch, on any device: their meaning, and what runs where no kernel does."""

from __future__ import annotations

import torch
from torch import Tensor

_GATHERED = 1 << 22
"""Entries of the widest temporary: 32 MiB in float64."""


def prepare(x: Tensor, centre: Tensor, scale: float, small: Tensor, norms: Tensor) -> float:
    """See `seal_fast.kernels.nearest.prepare`."""
    worst = 0.0
    for start in range(0, len(x), step := max(1, _GATHERED // max(1, x.shape[1]))):
        part = slice(start, start + step)
        shifted = (x[part].to(torch.float32) - centre).mul_(scale)
        small[part] = shifted
        norms[part] = torch.linalg.vector_norm(shifted, dim=1, dtype=torch.float64)
        rounding = torch.linalg.vector_norm(shifted.sub_(small[part]), dim=1, dtype=torch.float64)
        if len(rounding):
            worst = max(worst, float((rounding / norms[part].clamp_min(1e-300)).max()))
    return worst


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
) -> None:
    """See `seal_fast.kernels.nearest.update_`."""
    k = distances.shape[1]
    squared = block_norms.square()
    margin = rounding * products.abs().float() + error * torch.outer(query_norms, block_norms).float()
    lower = torch.addcmul((squared * (1 - slack)).float(), products.float().add_(margin), margin.new_tensor(-2.0))
    own = query_norms.square()
    known = distances[:, -1] * scale**2
    limit = known - own + slack * (known + own)
    if exclude is not None:
        at = exclude - first
        inside = ((at >= 0) & (at < len(block))).nonzero().squeeze(1)
        lower[inside, at[inside]] = torch.inf
    if len(block) >= k:
        # At least k rows of this block are as near as the k-th smallest upper bound.
        upper = margin.mul_(4).add_(lower).add_((2 * slack * squared).float())
        kth = upper.topk(k, largest=False, sorted=False).values.amax(1).double()
        limit = torch.minimum(limit, kth + slack * own)
    # 1e-30: what underflows in the products is below it, once the queries' largest entry is about 1.
    query, column = (lower <= (limit + 1e-30)[:, None]).nonzero(as_tuple=True)
    if exclude is not None:
        kept = exclude[query] != column + first
        query, column = query[kept], column[kept]
    found = _squared_distances(queries, block, query, column)
    _merge(distances, rows, query, column + first, found)


def _squared_distances(queries: Tensor, block: Tensor, query: Tensor, column: Tensor) -> Tensor:
    """Of these pairs, in float64."""
    found = block.new_empty(len(query), dtype=torch.float64)
    for start in range(0, len(query), step := max(1, _GATHERED // max(1, block.shape[1]))):
        part = slice(start, start + step)
        found[part] = queries[query[part]].double().sub_(block[column[part]]).square_().sum(1)
    return found


def _merge(distances: Tensor, rows: Tensor, query: Tensor, candidates: Tensor, found: Tensor) -> None:
    """Put candidates (sorted by query, then by row) beside what is known, and keep the nearest k."""
    k = distances.shape[1]
    counts = torch.bincount(query, minlength=len(distances))
    ends = counts.cumsum(0)
    slot = k + torch.arange(len(query), device=query.device) - (ends - counts)[query]
    widest = int(counts.max()) if len(counts) else 0
    # Queries are few at a time where one of them has many candidates, which equal distances bring about.
    for start in range(0, len(counts), step := max(1, _GATHERED // (widest + k))):
        near = torch.nn.functional.pad(distances[start : start + step], (0, widest), value=torch.inf)
        names = torch.nn.functional.pad(rows[start : start + step], (0, widest), value=-1)
        own = slice(int(ends[start] - counts[start]), int(ends[min(start + step, len(counts)) - 1]))
        near[query[own] - start, slot[own]] = found[own]
        names[query[own] - start, slot[own]] = candidates[own]
        # Stable, and rows ascend from left to right: equal distances stay in the order of the bank.
        order = near.argsort(dim=1, stable=True)[:, :k]
        distances[start : start + step] = near.gather(1, order)
        rows[start : start + step] = names.gather(1, order)
