"""Exact k nearest neighbours in Euclidean distance, while the bank streams by in blocks, and their majority vote.

Filter and refine: a matrix product in bfloat16 or float32 bounds every distance from below and above, and only those
which the bounds leave in doubt are computed exactly, in float64. No neighbour is ever missed, and hardly any work is
left for float64. `seal_fast.kernels.nearest` does the bookkeeping.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seal_fast.kernels import nearest
from seal_fast.kernels.torch_private import has_avx512_bf16
from seal_fast.utils.errors import RunError, UsageError

_PRODUCTS = 1 << 24  # entries of the block of products at most: 64 MiB
# Short blocks are put together up to so many products or bytes, for waking the threads costs about as much as a block
# of 512 pooled activations.
_TOGETHER, _TOGETHER_BYTES = 1 << 23, 1 << 23
_COUNTED = 1 << 22  # entries of the votes' counts: 16 MiB

# What a product of float32 matrices may lose of its operands, by torch's setting of it: the bits that TF32 and bfloat16
# lack may be cut off instead of rounded.
_OPERAND_ROUNDING = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}

# What summing one more term may lose of a dot product in float32. A tensor core cuts off where a CPU rounds, each of up
# to 16 products a step and then their sum (Fasi et al., "Numerical behavior of NVIDIA tensor cores", 2021).
_SUMMING = {"cpu": 2.0**-24, "cuda": 17 / 16 * 2.0**-23}


class Search:
    """The k nearest rows of a bank that is shown block by block, for every query.

    Neighbours are ordered by (distance, row in the bank): among equally distant rows the one shown first is nearer.
    Distances are those of float64 arithmetic on the values given. It holds the queries, their filter (half their bytes
    where it is bfloat16), 16 k bytes per query and up to 8 MiB of rows that wait for more; while a block is searched
    also the block's filter, 64 MiB of products, and, on the GPU or without the native kernels, up to 512 MiB to refine.

    Args:
        queries: [Q, D], floating point, on any device.
        k: how many neighbours.
        exclude: int64 [Q], a row of the bank that does not count for a query (such as the query itself), or -1.

    Raises:
        UsageError: k is below 1.
        RunError: a query is not finite.
    """

    def __init__(self, queries: Tensor, k: int, exclude: Tensor | None = None) -> None:
        if k < 1:
            raise UsageError(f"k {k}: must be at least 1")
        self.k, self.shown = k, 0
        self._waiting: list[Tensor] = []
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

    def add(self, block: Tensor) -> None:
        """Show the next rows of the bank, [B, D]; they must not change before `result`.

        Raises:
            RunError: they are not finite; of short blocks it may say so later.
        """
        self.shown += len(block)
        if not len(self._queries) or not len(block):
            return
        self._waiting.append(block)
        rows = sum(map(len, self._waiting))
        if rows * len(self._queries) >= _TOGETHER or rows * block[0].nbytes >= _TOGETHER_BYTES:
            self._search()

    @torch.no_grad()
    def _search(self) -> None:
        """Let the waiting rows into the lists."""
        if not self._waiting:
            return
        block = self._waiting[0] if len(self._waiting) == 1 else torch.cat(self._waiting)
        self._waiting = []
        with torch.autocast(block.device.type, enabled=False):
            first = self.shown - len(block)
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
            complete: whether all k must be there; else the places that are left hold row -1, infinitely far away.

        Raises:
            UsageError: the bank has fewer rows than neighbours are asked for.
            RunError: rows are not finite.
        """
        self._search()
        if complete and len(self._rows) and (self._rows[:, -1] < 0).any():
            besides = " besides the query itself" if self._exclude is not None else ""
            raise UsageError(
                f"k {self.k}: the bank holds only {self.shown} examples; ask for fewer neighbours{besides}"
            )
        return self._rows, self._distances


def merged(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The nearest rows of a bank, out of those of its parts.

    Args:
        parts: of each, rows of the whole bank int64 [Q, k] and distances [Q, k]; what `result` may leave open too.

    Returns:
        Rows [Q, k] and distances [Q, k], ordered by (distance, row).
    """
    rows, distances = (torch.cat(columns, 1) for columns in zip(*parts, strict=True))
    by_row = rows.argsort(dim=1)
    by_distance = distances.gather(1, by_row).argsort(dim=1, stable=True)
    nearest_first = by_row.gather(1, by_distance)[:, : parts[0][0].shape[1]]
    return rows.gather(1, nearest_first), distances.gather(1, nearest_first)


# Rounding of the shift (2^-24 of an entry), of norms and of what is computed with the bounds, several times over.
_SLACK = 2.0**-19


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The product a @ b.T summed in float32; cuBLAS may sum parts of long ones in bfloat16, unless told not to."""
    settings = torch.backends.cuda.matmul
    before = settings.allow_bf16_reduced_precision_reduction
    settings.allow_bf16_reduced_precision_reduction = False
    try:
        return a @ b.T
    finally:
        settings.allow_bf16_reduced_precision_reduction = before


def _filter_dtype(dimensions: int, device: torch.device) -> torch.dtype:
    """Bfloat16 where products in it are faster and many dimensions make them the larger part of the work."""
    fast = device.type != "cpu" or has_avx512_bf16()
    return torch.bfloat16 if fast and dimensions >= 32 else torch.float32


def neighbours(queries: Tensor, bank: Tensor, k: int, query_block: int = 4096, bank_block: int = 8192):
    """The exact k nearest rows of `bank` [N, D] for each of `queries` [Q, D]; see `Search`.

    Beside its input and output it holds what `Search` does for two blocks, whatever Q and N are.

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
    """The most frequent class in each row of `labels` int64 [Q, k]; among equally frequent ones the smallest.

    The tie rule is that of scikit-learn's KNeighborsClassifier with uniform weights. For fewer neighbours pass fewer
    columns: those of `neighbours` are sorted by distance.

    Returns:
        Classes, int64 [Q].
    """
    chosen = []
    for part in labels.split(max(1, _COUNTED // max(1, num_classes))):
        counts = torch.zeros(len(part), num_classes, dtype=torch.int32, device=part.device)
        counts.scatter_add_(1, part, torch.ones_like(part, dtype=torch.int32))
        # The largest count, and of those the smallest class: argmax alone does not say which of equals it takes.
        ranked = counts.long() * num_classes - torch.arange(num_classes, device=part.device)
        chosen.append(ranked.argmax(1))
    return torch.cat(chosen) if chosen else labels.new_empty(0)
