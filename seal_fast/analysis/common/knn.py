"""Exact k nearest neighbours in Euclidean distance, from a bank read in blocks, and their majority vote.

A matrix product in bfloat16 or float32 bounds every distance from below and above; only those that the bounds leave in
doubt are computed in float64. No neighbour is missed. `seal_fast.kernels.nearest` keeps the lists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seal_fast.kernels import nearest
from seal_fast.kernels.torch_private import has_avx512_bf16
from seal_fast.utils.errors import RunError, UsageError

_PRODUCTS = 1 << 24  # most entries of the block of products: 64 MiB
_COUNTED = 1 << 22  # entries of the votes' counts: 16 MiB
# Relative error of the operands of a float32 product, by torch's setting: TF32 and bfloat16 may truncate.
_OPERAND_ROUNDING = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}
# Relative error of each addition in a float32 dot product. A tensor core truncates where a CPU rounds, each of up to 16
# products a step and then their sum (Fasi et al., "Numerical behavior of NVIDIA tensor cores", 2021).
_SUMMING = {"cpu": 2.0**-24, "cuda": 17 / 16 * 2.0**-23}


class Search:
    """The k nearest rows of a bank for every query; the bank is added block by block.

    Neighbours are ordered by (distance, row in the bank). Distances are those of float64 arithmetic. Memory holds the
    queries, their filter (half their bytes where it is bfloat16) and 16 k bytes a query; during a search also the
    block's filter, 64 MiB of products, and, on the GPU or without the native kernels, up to 512 MiB to refine.

    Args:
        queries: [Q, D], floating point, on any device.
        k: neighbours.
        exclude: int64 [Q], a row of the bank that does not count for the query (such as itself), or -1.

    Raises:
        UsageError: k is below 1.
        RunError: a query is not finite.
    """

    def __init__(self, queries: Tensor, k: int, exclude: Tensor | None = None) -> None:
        if k < 1:
            raise UsageError(f"k {k}: must be at least 1")
        self.k, self.shown = k, 0
        self._queries, self._exclude = queries, exclude
        count, self._dimensions = queries.shape
        # Shifting and scaling change no neighbour; they keep norms, and with them the bounds' distance, small.
        self._centre = queries.mean(0, dtype=torch.float64).to(torch.float32) if count else queries.new_zeros(1).float()
        low, high = (queries.amin(), queries.amax()) if queries.numel() else (self._centre[0],) * 2
        spread = max((high - self._centre.min()).item(), (self._centre.max() - low).item())
        if not math.isfinite(spread):
            raise RunError("the features hold NaN or infinite values, so they have no neighbours")
        self._scale = 2.0 ** -round(math.log2(spread)) if spread > 0 else 1.0
        self._filter = _filter_dtype(self._dimensions, queries.device)
        self._small, self._norms, self._lost = nearest.prepare(queries, self._centre, self._scale, self._filter)
        self._distances = queries.new_full((count, k), math.inf, dtype=torch.float64)
        self._rows = queries.new_full((count, k), -1, dtype=torch.int64)

    @torch.no_grad()
    def add(self, block: Tensor) -> None:
        """Add the next rows of the bank, [B, D].

        Raises:
            RunError: they are not finite.
        """
        first, self.shown = self.shown, self.shown + len(block)
        if not len(self._queries) or not len(block):
            return
        with torch.autocast(block.device.type, enabled=False):
            for part in block.split(max(1, _PRODUCTS // len(self._queries))):
                self._add(part, first)
                first += len(part)

    def _add(self, block: Tensor, first: int) -> None:
        small, norms, lost = nearest.prepare(block, self._centre, self._scale, self._filter)
        if not torch.isfinite(norms.sum()):
            raise RunError("the features hold NaN or infinite values, so they have no neighbours")
        products = _product(self._small, small)
        lost_too = 0.0 if self._filter != torch.float32 else _OPERAND_ROUNDING[torch.get_float32_matmul_precision()]
        lost, own = lost + lost_too, self._lost + lost_too
        summing = (self._dimensions + 1) * _SUMMING[block.device.type]  # of a whole dot product, in any order
        error = lost + own + lost * own + (1 + lost) * (1 + own) * summing / (1 - summing)
        nearest.update_(
            self._distances,
            self._rows,
            self._queries,
            self._norms,
            block,
            norms,
            products,
            first,
            self._exclude,
            scale=self._scale,
            error=error + _SLACK,
            rounding=2.0**-8 * (1 + 2.0**-7) if self._filter == torch.bfloat16 else 2.0**-23,
            slack=_SLACK,
        )

    def result(self, complete: bool = True) -> tuple[Tensor, Tensor]:
        """Rows of the bank int64 [Q, k] and their squared distances float64 [Q, k], nearest first.

        Args:
            complete: whether all k must exist; else missing ones are row -1 at infinite distance.

        Raises:
            UsageError: the bank has fewer rows than neighbours are asked for.
        """
        if complete and len(self._rows) and (self._rows[:, -1] < 0).any():
            besides = " besides the query itself" if self._exclude is not None else ""
            raise UsageError(
                f"k {self.k}: the bank holds only {self.shown} examples; ask for fewer neighbours{besides}"
            )
        return self._rows, self._distances


def merged(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The nearest rows of a bank, out of those of its parts.

    Args:
        parts: rows of the whole bank int64 [Q, k] and distances [Q, k], missing ones as in `Search.result`.

    Returns:
        Rows [Q, k] and distances [Q, k], ordered by (distance, row).
    """
    rows, distances = (torch.cat(columns, 1) for columns in zip(*parts, strict=True))
    by_row = rows.argsort(dim=1)
    by_distance = distances.gather(1, by_row).argsort(dim=1, stable=True)
    nearest_first = by_row.gather(1, by_distance)[:, : parts[0][0].shape[1]]
    return rows.gather(1, nearest_first), distances.gather(1, nearest_first)


# Covers the rounding of the shift (2^-24 of an entry), of norms, and of the arithmetic on bounds, with a margin.
_SLACK = 2.0**-19


def _product(a: Tensor, b: Tensor) -> Tensor:
    """A @ b.T, summed in float32: by default cuBLAS may sum parts of it in bfloat16."""
    settings = torch.backends.cuda.matmul
    before = settings.allow_bf16_reduced_precision_reduction
    settings.allow_bf16_reduced_precision_reduction = False
    try:
        return a @ b.T
    finally:
        settings.allow_bf16_reduced_precision_reduction = before


def _filter_dtype(dimensions: int, device: torch.device) -> torch.dtype:
    """Bfloat16 where its products are faster and the dimensions are many."""
    fast = device.type != "cpu" or has_avx512_bf16()
    return torch.bfloat16 if fast and dimensions >= 32 else torch.float32


def neighbours(queries: Tensor, bank: Tensor, k: int, query_block: int = 4096, bank_block: int = 8192):
    """The exact k nearest rows of `bank` [N, D] for each of `queries` [Q, D], in blocks; see `Search`.

    Returns:
        Rows of the bank int64 [Q, k] and squared distances float64 [Q, k], ordered by (distance, row).

    Raises:
        UsageError: the bank has fewer than k rows.
        RunError: a feature is not finite.
    """
    rows, distances = [], []
    for part in queries.split(query_block):
        search = Search(part, k)
        for block in bank.split(bank_block):
            search.add(block)
        found = search.result()
        rows.append(found[0])
        distances.append(found[1])
    return torch.cat(rows), torch.cat(distances)


def vote(labels: Tensor, num_classes: int) -> Tensor:
    """The most frequent class in each row of `labels` int64 [Q, k], among equals the smallest, as int64 [Q].

    The tie rule is that of scikit-learn's KNeighborsClassifier with uniform weights.
    """
    chosen = []
    for part in labels.split(max(1, _COUNTED // max(1, num_classes))):
        counts = torch.zeros(len(part), num_classes, dtype=torch.int32, device=part.device)
        counts.scatter_add_(1, part, torch.ones_like(part, dtype=torch.int32))
        # argmax alone does not say which of equal counts it takes.
        ranked = counts.long() * num_classes - torch.arange(num_classes, device=part.device)
        chosen.append(ranked.argmax(1))
    return torch.cat(chosen) if chosen else labels.new_empty(0)
